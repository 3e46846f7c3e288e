import pytest

from arctic_workers.training.experts.probe import ROUNDS, Probe, candidates_for


def tried(probe: Probe, seconds: dict[int, float]) -> list[int]:
    numbers = []
    while probe.under_way:
        numbers.append(probe.current)
        # The first step is slow whatever is tried in it.
        probe.note(100.0 if len(numbers) == 1 else seconds[probe.current])
    return numbers


def test_each_number_is_tried_in_turn_and_the_fastest_chosen() -> None:
    probe = Probe((2, 1, 4))
    assert tried(probe, {1: 3.0, 2: 2.0, 4: 1.0}) == [2, *(2, 1, 4) * ROUNDS]
    assert probe.medians() == [2.0, 3.0, 1.0]
    assert probe.choice(probe.medians()) == 4


def test_a_gain_that_is_hardly_one_changes_nothing() -> None:
    assert Probe((2, 1, 4)).choice([2.0, 1.99, 2.5]) == 2


@pytest.mark.parametrize(
    ("ranks", "held", "row_bytes", "candidates"),
    [(1, 8, 64, (1,)), (2, 8, 128, (2, 1, 4)), (2, 2, 64, (2, 1)), (128, 1, 64, (2,)), (2, 8, 96, (2,))],
)
def test_what_may_be_tried_changes_no_sum(ranks: int, held: int, row_bytes: int, candidates: tuple[int, ...]) -> None:
    assert candidates_for(ranks, held, 64, row_bytes) == candidates


def test_one_number_is_not_tried() -> None:
    assert not Probe((1,)).under_way
