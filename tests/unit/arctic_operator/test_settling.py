"""Which news of a training that starts waits a moment for the next."""

import pytest

from arctic_operator.live import Live
from arctic_operator.plan.settling import begins, settles


def status(state, attempt=1, degraded=False, generation=1):
    when = "2026-01-01T00:00:00Z"
    conditions = [{"type": "Degraded", "status": str(degraded), "reason": "R", "lastTransitionTime": when}]
    return {"state": state, "attempt": attempt, "observedGeneration": generation, "conditions": conditions}


OPENING, BROKEN, CONNECTED = Live(), Live(error="refused"), Live(connected=True)


@pytest.mark.parametrize(
    ("before", "after", "live", "waits"),
    [
        (status("Starting"), status("Starting"), None, True),
        (status("Starting"), status("Running"), None, True),
        (status("Running"), status("Running"), OPENING, True),
        (status("Starting"), status("Running"), CONNECTED, False),
        (status("Running"), status("Running"), BROKEN, False),
        (status("Starting"), status("Restarting"), None, False),
        (status("Starting"), status("Starting", attempt=2), None, False),
        (status("Starting"), status("Starting", degraded=True), None, False),
        (status("Starting", degraded=True), status("Starting"), None, False),
        (status("Starting", generation=0), status("Starting"), None, False),
        ({}, status("Starting"), None, False),
    ],
)
def test_steps_of_a_start_wait_for_each_other_and_edits_states_and_trouble_for_nothing(
    build, before, after, live, waits
):
    assert settles(build.training(before), after, live) is waits


@pytest.mark.parametrize(
    ("before", "after", "live", "may"),
    [
        ({}, status("Starting"), None, True),
        ({}, status("Running"), OPENING, True),
        ({}, status("Running"), CONNECTED, False),
        ({}, status("Running"), BROKEN, False),
        ({}, status("Queued"), None, False),
        ({}, status("Starting", degraded=True), None, False),
        ({}, status("Starting", attempt=2), None, False),
        (status("Starting", generation=0), status("Starting"), None, False),
    ],
)
def test_only_a_first_status_without_news_may_wait_for_the_worlds_of_others(build, before, after, live, may):
    assert begins(build.training(before), after, live) is may


def test_a_start_that_a_deadline_waits_for_is_told_at_once(build):
    after = status("Running") | {"startTime": "2026-01-01T00:00:00Z"}
    for deadline, waits in (("1m", False), (None, True)):
        assert settles(build.training(status("Starting"), startDeadline=deadline), after, None) is waits
        assert begins(build.training({}, startDeadline=deadline), after, None) is waits
