"""What the benchmark of faults counts as survived."""

from collections.abc import Iterator

import pytest
from training_faults import Fault

from benchmarks.faults_training import outlived

FAULTS = [Fault("a rank is killed", step, 1.0) for step in (1, 2, 3)]


def ends_badly() -> None:
    raise AssertionError("the run ended with 1")


def until(count: int) -> Iterator[Fault]:
    """Faults of which a run comes past so many."""
    yield from FAULTS[:count]
    if count < len(FAULTS):
        ends_badly()


@pytest.mark.parametrize("count", [0, 2])
def test_a_fault_that_ends_the_run_is_not_survived(count: int) -> None:
    assert outlived(until(count), ends_badly) == FAULTS[:count]


def test_the_last_fault_is_survived_by_a_run_that_ends_well() -> None:
    assert outlived(until(3), lambda: None) == FAULTS
    assert outlived(until(3), ends_badly) == FAULTS[:2]
