"""The chart's dashboards: their JSON, and the ConfigMaps that bring them to Grafana."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from arctic_cli.dashboards import DASHBOARDS
from arctic_cli.dashboards.grafana import HEIGHT, WIDTH, Dashboard

Render = Callable[..., list[dict[str, Any]]]
MONITORED = ("--api-versions", "monitoring.coreos.com/v1")
BUILT_IN = {"__rate_interval", "__url_time_range", "__data", "__field", "datasource"}
"""What Grafana itself fills in, and the choice of a Prometheus."""

every_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=list(DASHBOARDS))


def panels(dashboard: Dashboard) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(dashboard.text())["panels"]
    return found


@every_dashboard
def test_panels_have_numbers_of_their_own_and_fill_rows_without_overlap(dashboard: Dashboard) -> None:
    drawn = panels(dashboard)
    assert [each["id"] for each in drawn] == list(range(1, len(drawn) + 1))
    taken: set[tuple[int, int]] = set()
    for place in (each["gridPos"] for each in drawn):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
    assert len(taken) == WIDTH * HEIGHT * len(dashboard.rows)


@every_dashboard
def test_every_panel_asks_the_chosen_prometheus_and_hides_no_gap(dashboard: Dashboard) -> None:
    titles = [each["title"] for each in panels(dashboard)]
    assert len(set(titles)) == len(titles)
    for panel in panels(dashboard):
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert "vector(" not in target["expr"], "a gap is to be seen as one"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@every_dashboard
def test_variables_that_are_used_are_defined(dashboard: Dashboard) -> None:
    text = dashboard.text()
    defined = {each["name"] for each in json.loads(text)["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", text))
    assert used - BUILT_IN <= defined
    assert defined - {"datasource"} <= used, "a choice that changes nothing"


def test_links_lead_to_dashboards_that_are_there_with_the_object_chosen() -> None:
    found = set()
    for dashboard in DASHBOARDS.values():
        (to_all,) = json.loads(dashboard.text())["links"]
        assert (to_all["type"], to_all["tags"], to_all["includeVars"]) == ("dashboards", ["arctic"], True)
        for panel in panels(dashboard):
            for link in panel["fieldConfig"]["defaults"].get("links", ()):
                uid, chosen = re.fullmatch(r"/d/([\w-]+)\?(.*)", link["url"]).groups()  # type: ignore[union-attr]
                assert set(re.findall(r"var-(\w+)", chosen)) == {each.name for each in DASHBOARDS[uid].variables}
                found.add(uid)
    assert found == {"arctic-training", "arctic-service"}


def test_the_chart_brings_each_as_a_config_map_for_grafanas_sidecar(render: Render) -> None:
    made = [each for each in render(*MONITORED) if each["kind"] == "ConfigMap"]
    assert all(each["metadata"]["labels"]["grafana_dashboard"] == "1" for each in made)
    texts = {file: text for each in made for file, text in each["data"].items()}
    assert {file: json.loads(text) for file, text in texts.items()} == {
        f"{uid}.json": json.loads(dashboard.text()) for uid, dashboard in DASHBOARDS.items()
    }
    for switch in ("monitoring.enabled=false", "monitoring.dashboards.enabled=false"):
        assert [each for each in render(*MONITORED, "--set", switch) if each["kind"] == "ConfigMap"] == []
    assert [each for each in render() if each["kind"] == "ConfigMap"] == []


def test_grafanas_folder_and_labels_are_the_users_to_choose(render: Render) -> None:
    chosen = ("--set", "monitoring.dashboards.labels.team=ml,monitoring.dashboards.annotations.grafana_folder=Arctic")
    for each in render(*MONITORED, *chosen):
        if each["kind"] == "ConfigMap":
            assert each["metadata"]["labels"]["team"] == "ml"
            assert each["metadata"]["annotations"] == {"grafana_folder": "Arctic"}


def test_grafanas_label_can_be_left_out(render: Render) -> None:
    made = render(*MONITORED, "--set", "monitoring.dashboards.labels.grafana_dashboard=null")
    labels = [each["metadata"]["labels"] for each in made if each["kind"] == "ConfigMap"]
    assert len(labels) == len(DASHBOARDS)
    assert all("grafana_dashboard" not in each for each in labels)
