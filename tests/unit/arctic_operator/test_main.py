"""When the operator looks at what a watch has shown."""

import gc

import pytest

from arctic_operator.__main__ import PENDING_SECONDS, TOGETHER_SECONDS, _wait, sweep_seldom


def pod(phase, **metadata):
    return {"kind": "Pod", "metadata": {"name": "p0", **metadata}, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("kind", "before", "after", "wait"),
    [
        ("ADDED", None, pod("Pending"), PENDING_SECONDS),
        ("MODIFIED", pod("Pending"), pod("Pending"), PENDING_SECONDS),
        ("MODIFIED", pod("Pending"), pod("Running"), TOGETHER_SECONDS),
        ("MODIFIED", pod("Running"), pod("Running"), 0.0),
        ("MODIFIED", pod("Pending"), pod("Failed"), 0.0),
        ("MODIFIED", pod("Pending"), pod("Pending", deletionTimestamp="2026-01-01T00:00:00Z"), 0.0),
        ("", None, pod("Running"), 0.0),
        ("DELETED", pod("Pending"), pod("Pending"), 0.0),
        ("MODIFIED", None, pod("Pending") | {"kind": "Job"}, 0.0),
    ],
)
def test_what_starts_is_looked_at_together_with_what_follows_and_all_else_at_once(kind, before, after, wait):
    assert _wait(kind, before, after) == wait


def test_however_many_objects_there_are_they_are_not_all_searched_for_garbage_unless_that_is_asked():
    searched, thresholds = [], gc.get_threshold()
    young, middle, old = thresholds

    def note(phase, told):
        searched.append(told["generation"])

    sweep_seldom()
    gc.collect()
    gc.callbacks.append(note)
    try:
        kept = [[] for _ in range(2 * young * middle * old)]
        assert set(searched) == {0, 1}, len(kept)
        gc.collect()
        assert searched[-1] == 2
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*thresholds)
        gc.unfreeze()
