"""The chart's alerts in the real promtool: each fires when it should, and stays silent when it should."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from runbooks import PAGES, commands

from arctic_cli.main import main as arctic
from arctic_workers.inference import metrics as inference_metrics

ROOT = Path(__file__).parents[3]
CASES = Path(__file__).with_name("alerts")
MONITORED = ("--api-versions", "monitoring.coreos.com/v1")

Rule = dict[str, Any]
Render = Callable[..., list[dict[str, Any]]]


def groups(render: Render, *values: str) -> list[dict[str, Any]]:
    (rules,) = (each for each in render(*MONITORED, *values) if each["kind"] == "PrometheusRule")
    found: list[dict[str, Any]] = rules["spec"]["groups"]
    return found


def alerts(render: Render, *values: str) -> list[Rule]:
    return [rule for group in groups(render, *values) for rule in group["rules"] if "alert" in rule]


def rendered(texts: dict[str, str], labels: dict[str, str]) -> dict[str, str]:
    """Fill in an alert's labels, as Prometheus does."""

    def value(found: re.Match[str]) -> str:
        return labels[found[1]]

    return {name: re.sub(r"\{\{ \$labels\.(\w+) \}\}", value, text) for name, text in texts.items()}


def cases(file: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((CASES / file).read_text())["tests"]
    return found


FILES = sorted(path.name for path in CASES.glob("*.yaml"))


@pytest.fixture(scope="module")
def rules(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": groups(render)}))
    return path


def test_promtool_takes_all_rules(rules: Path, promtool: str) -> None:
    checked = subprocess.run(
        [promtool, "check", "rules", "--lint=all", "--lint-fatal", rules], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("file", FILES)
def test_alerts_fire_when_they_should_and_only_then(file: str, rules: Path, render: Render, promtool: str) -> None:
    written = {(rule["alert"], rule["labels"]["severity"]): rule["annotations"] for rule in alerts(render)}
    whole = yaml.safe_load((CASES / file).read_text()) | {"rule_files": [str(rules)]}
    for case in whole["tests"]:
        for asked in case["alert_rule_test"]:
            for expected in asked.get("exp_alerts", ()):
                labels = expected["exp_labels"]
                expected["exp_annotations"] = rendered(written[asked["alertname"], labels["severity"]], labels)
    path = rules.with_name(file)
    path.write_text(yaml.safe_dump(whole))
    tested = subprocess.run([promtool, "test", "rules", path], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(render: Render) -> None:
    fires, silent = set(), set()
    for case in (case for file in FILES for case in cases(file)):
        for asked in case["alert_rule_test"]:
            expected = asked.get("exp_alerts", ())
            fires |= {(asked["alertname"], each["exp_labels"]["severity"]) for each in expected}
            if not any(each.get("exp_alerts") for each in case["alert_rule_test"]):
                silent.add(asked["alertname"])
    assert fires == {(rule["alert"], rule["labels"]["severity"]) for rule in alerts(render)}
    assert silent == {rule["alert"] for rule in alerts(render)}


def test_every_alert_says_what_is_wrong_and_names_its_page(render: Render) -> None:
    for rule in alerts(render, "--set", "monitoring.runbooks=https://wiki.example/arctic/"):
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"https://wiki.example/arctic/{rule['alert']}.md"
    pages = {path.stem for path in PAGES} - {"README"}
    assert pages == {rule["alert"] for rule in alerts(render)}


@pytest.mark.parametrize("seconds", ["1", "0.25"])
def test_the_objective_of_first_tokens_is_a_bound_of_the_histogram(render: Render, seconds: str) -> None:
    recorded = json.dumps(groups(render, "--set-json", f"monitoring.objectives.timeToFirstToken.seconds={seconds}"))
    assert set(re.findall(r'le=\\"([^"\\]+)', recorded)) == {str(float(seconds))}
    schema = json.loads((ROOT / "charts/arctic/values.schema.json").read_text())
    objectives = schema["properties"]["monitoring"]["properties"]["objectives"]["properties"]
    allowed = objectives["timeToFirstToken"]["properties"]["seconds"]["enum"]
    assert set(map(float, allowed)) <= set(map(float, inference_metrics.TTFT_BOUNDS))


def test_an_objective_whose_fastest_burn_can_not_be_reached_is_refused(
    run_helm: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    chart = str(ROOT / "charts" / "arctic")
    for value in ("availability=90", "availability=100", "timeToFirstToken.percent=50", "timeToFirstToken.seconds=3"):
        refused = run_helm("template", "arctic", chart, *MONITORED, "--set-json", f"monitoring.objectives.{value}")
        assert refused.returncode != 0
        assert "/monitoring/objectives" in refused.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_runbook_are_there(page: Path) -> None:
    for words in commands(page):
        assert words[0] in {"kubectl", "arctic", "helm"}, words
        if words[0] != "arctic":
            continue
        command: click.Command = arctic
        rest = words[1:]
        while isinstance(command, click.Group):
            command = command.commands[rest.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word.partition("=")[0] for word in rest if word.startswith("-")} <= known, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_runbook_shows_the_log_of_every_operator(page: Path) -> None:
    """Of a Deployment's pods kubectl shows one alone, which may be the one that waits to lead."""
    asked = re.findall(r"kubectl .*\blogs (\S+)", page.read_text())
    assert not [what for what in asked if what.startswith("deployment/")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_runbook_sets_no_number_that_may_be_less_than_there_is(page: Path) -> None:
    """Three replicas that are too few become two by a command that says so."""
    changes = [" ".join(words) for words in commands(page) if {"scale", "patch"} & set(words)]
    assert not [command for command in changes if re.search(r"=\d|:\d", command)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_shell_takes_a_word_of_a_runbook_for_a_pattern_of_files(page: Path) -> None:
    """Where nothing matches, bash leaves it as it is, and zsh refuses the command."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    words = [word for block in blocks for word in shlex.split(block, comments=True, posix=False)]
    assert not [word for word in words if re.search(r"[?*[]", re.sub(r"'[^']*'", "", word))]
