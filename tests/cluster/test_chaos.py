"""A short seeded campaign of faults; `make chaos` runs a long one."""

import json
from typing import Any

import pytest
from chaos import Campaign, Invariants
from stand_in import StandIns

from arctic_api.world import Label
from arctic_cluster import Cluster


@pytest.mark.timeout(0)  # as long as the faults that are asked for take
def test_faults_break_no_invariant_and_everything_comes_to_where_its_manifest_says(
    operator: Cluster, stand_in: None, namespace: str, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    faults, seed = pytestconfig.getoption("--faults"), pytestconfig.getoption("--seed")
    say(f"\nseed {seed}, {faults} faults")
    outcome = Campaign(StandIns(operator, namespace), seed, say).run(faults)
    say(json.dumps(outcome.figures()))
    assert (outcome.violations, outcome.unconverged) == ([], [])


def training(**status: Any) -> dict[str, Any]:
    return {"metadata": {"uid": "u"}, "status": {"state": "Running", "attempt": 2, **status}}


def pod(attempt: int, phase: str = "Running") -> dict[str, Any]:
    return {"metadata": {"labels": {Label.UID: "u", Label.ATTEMPT: str(attempt)}}, "status": {"phase": phase}}


def group(name: str, **metadata: Any) -> dict[str, Any]:
    labels = {Label.UID: "s", Label.GROUP: name}
    return {"metadata": {"labels": labels, **metadata}, "status": {"phase": "Running"}}


DONE = training(state="Succeeded", export={"uri": "file:///x"})
CRASH = {"number": 1, "reason": "Crash", "message": "exit code 1", "counted": True}


@pytest.mark.parametrize(
    ("looks", "seen"),
    [
        ([(training(), [pod(2), pod(2)])], []),
        ([(training(), [pod(1, "Failed"), pod(2)])], []),
        ([(training(), [pod(1), pod(2)])], ["attempts 1, 2 of training u have pods at once"]),
        ([(training(), []), (training(attempt=1), [])], ["the attempt of u fell to 1"]),
        ([(DONE, []), (training(), [])], ["u had succeeded, and is Running"]),
        ([(training(state="Succeeded"), [])], ["u succeeded without an export"]),
        ([(training(attempts=[CRASH]), [])], ["u was charged for attempt 1, Crash: exit code 1"]),
        ([(training(attempts=[CRASH | {"counted": False}]), [])], []),
        ([(training(), [group("a"), group("a"), group("b"), group("c")])], []),
        ([(training(), [group("a"), group("b"), group("c"), group("d", deletionTimestamp="now")])], []),
        ([(training(), [group("a"), group("b"), group("c"), group("d")])], ["service s has groups a, b, c, d at once"]),
    ],
)
def test_what_must_never_be_is_noticed(
    looks: list[tuple[dict[str, Any], list[dict[str, Any]]]], seen: list[str]
) -> None:
    invariants = Invariants()
    for one, pods in looks:
        invariants.look([one], pods)
    assert invariants.violations == seen
