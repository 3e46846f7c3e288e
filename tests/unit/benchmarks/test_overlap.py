"""Under which conditions the benchmark of overlap compares systems."""

from typing import Any

import pytest

from benchmarks.overlap import AUTOEP, OURS, SYSTEMS, Rate, Taken, unfair

RATE = Rate("100 Mbit/s", 100)


def taken(**ours: float) -> Taken:
    """What all systems answer alike, but for ours."""
    answers: dict[str, list[dict[str, Any]]] = {
        system: [{"seconds": 10.0, "zero": 0.5, "sent": 1e8} | (ours if system == OURS else {})] for system in SYSTEMS
    }
    return Taken(1e7, 2, answers)


def test_systems_that_do_the_same_work_are_compared() -> None:
    assert list(unfair({RATE: taken(sent=1.01e8)})) == []
    assert taken().zero_share == pytest.approx(0.05)


def test_another_amount_of_bytes_is_other_work() -> None:
    [said] = unfair({RATE: taken(sent=1.1e8)})
    assert said.startswith("100 Mbit/s: systems send 10.0% apart")
    behind = taken()
    behind.answers[AUTOEP][0]["sent"] = 0.9e8
    assert len(list(unfair({RATE: behind}))) == 1


def test_a_reduction_that_fills_the_link_disturbs_what_is_measured() -> None:
    [said] = unfair({RATE: taken(zero=1.5)})
    assert said.startswith("100 Mbit/s: ZeRO's reduction is 15.0% of a step")
