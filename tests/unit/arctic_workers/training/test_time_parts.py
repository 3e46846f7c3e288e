import itertools

import pytest

from arctic_workers.training.accounts import CHECKPOINT, COMMUNICATION, COMPUTE, DATA, RATE_STEPS, Rate, TimeParts


def test_each_second_is_counted_once_and_as_that_of_the_innermost_part() -> None:
    moments = iter([0.0, 1.0, 4.0, 6.0, 7.0, 17.0, 18.0])
    parts = TimeParts(lambda: next(moments))
    with parts.of(DATA):  # from 1 to 4
        pass
    with parts.of(CHECKPOINT), parts.of(COMMUNICATION):  # from 6, from 7 to 17
        pass  # the outer one ends at 18
    seconds = TimeParts.seconds
    parts._clock = lambda: 20.0
    assert {part: count for part, count in seconds(parts).items() if count} == {
        COMPUTE: 1.0 + 2.0 + 2.0,
        DATA: 3.0,
        CHECKPOINT: 1.0 + 1.0,
        COMMUNICATION: 10.0,
    }


def test_a_part_that_fails_ends_too() -> None:
    clock = itertools.count()
    parts = TimeParts(lambda: float(next(clock)))
    with pytest.raises(ValueError, match="broken"), parts.of(DATA):
        raise ValueError("broken")
    before = parts.seconds()[DATA]
    assert parts.seconds()[DATA] == before


def test_the_rate_is_right_where_steps_differ_in_tokens() -> None:
    rate = Rate()
    for moment, tokens in ((10.0, 100), (11.0, 200), (13.0, 700)):
        rate.note(moment, tokens)
    assert rate.per_second() == 200.0


def test_the_rate_is_that_of_the_last_steps_and_none_before_two() -> None:
    rate = Rate()
    assert rate.per_second() == 0.0
    for step in range(100):
        rate.note(float(step), step * (1 if step < 50 else 2))
    assert rate.per_second() == 2.0
    assert RATE_STEPS < 50
    rate.clear()
    rate.note(0.0, 5)
    assert rate.per_second() == 0.0
