"""Every metric that a rule, a panel or a runbook names is one that a component of ours exports, labels and all."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from exported_metrics import Exported, UnknownMetricError, exported, expressions_in, labels_of, target_labels
from prometheus import Prometheus
from runbooks import FOLDER, PAGES

from arctic_cli.dashboards import DASHBOARDS
from arctic_operator.certificates import Authority, server_secret

MONITORED = ("--api-versions", "monitoring.coreos.com/v1")

Render = Callable[..., list[dict[str, Any]]]


def of_kind(render: Render, kind: str) -> list[dict[str, Any]]:
    return [each for each in render(*MONITORED) if each["kind"] == kind]


def rules(render: Render) -> list[dict[str, Any]]:
    (found,) = of_kind(render, "PrometheusRule")
    return [rule for group in found["spec"]["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def known(render: Render, prometheus: Prometheus, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    tls, now = tmp_path_factory.mktemp("tls"), datetime.now(UTC)
    for name, content in server_secret(Authority.create(now), "tiny", "team", now).items():
        (tls / name).write_bytes(content)
    targets = frozenset.intersection(
        *(target_labels(each) for kind in ("PodMonitor", "ServiceMonitor") for each in of_kind(render, kind))
    )
    (pods,) = of_kind(render, "PodMonitor")
    found = {
        name: labels | (targets if name.startswith("arctic_operator_") else target_labels(pods))
        for name, labels in exported(tmp_path_factory.mktemp("gateway"), tls).items()
    }
    for rule in rules(render):
        if "record" in rule:
            found[rule["record"]] = labels_of(prometheus.parse(rule["expr"]), found)
    return found


def test_rules_read_what_is_exported(render: Render, prometheus: Prometheus, known: Exported) -> None:
    for rule in rules(render):
        labels = labels_of(prometheus.parse(rule["expr"]), known)
        shown = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule.get("annotations", {}))))
        assert shown <= labels, rule


def test_panels_read_what_is_exported(prometheus: Prometheus, known: Exported) -> None:
    for dashboard in DASHBOARDS.values():
        for panel in dashboard.panels:
            for query in panel.queries:
                labels = labels_of(prometheus.parse(query.expr.replace("$__rate_interval", "5m")), known)
                assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= labels, (dashboard.title, panel.title)
                assert panel.link is None or {"namespace", "name"} <= labels, (dashboard.title, panel.title)
        for variable in dashboard.variables:
            assert variable.name in known[variable.metric]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_runbooks_name_what_is_exported(page: Path, prometheus: Prometheus, known: Exported) -> None:
    for expression in expressions_in(page.read_text()):
        name = expression.partition("{")[0]
        if name in known:
            labels_of(prometheus.parse(expression), known)
        else:  # a histogram by the name of all its series
            assert f"{name}_bucket" in known, expression


def test_every_page_names_what_its_alert_reads(render: Render) -> None:
    for rule in rules(render):
        if "alert" in rule:
            assert any(expressions_in((FOLDER / f"{rule['alert']}.md").read_text())), rule["alert"]


@pytest.mark.parametrize(
    ("expr", "what"),
    [
        ("arctic_training_lost", "nobody exports arctic_training_lost"),
        ('arctic_training_loss{rank="0"}', "arctic_training_loss has no label rank"),
        ("sum by (source) (arctic_training_loss)", "what sum is taken of has no label source"),
        ("arctic_training_loss and on (layer) arctic_training_loss", "the left side of and has no label layer"),
        ("histogram_quantile(0.5, arctic_training_loss)", "histogram_quantile is taken of has no label le"),
    ],
)
def test_what_nobody_exports_is_found(expr: str, what: str, prometheus: Prometheus, known: Exported) -> None:
    with pytest.raises(UnknownMetricError, match=re.escape(what)):
        labels_of(prometheus.parse(expr), known)
