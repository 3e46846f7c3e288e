"""Rates and values of the last moments."""

import math

from hypothesis import given
from hypothesis import strategies as st

from arctic_workers.inference.metrics import Recent


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 100)), max_size=30), st.floats(0, 12))
def test_only_values_of_the_window_count(steps: list[tuple[float, float]], later: float) -> None:
    now = 0.0
    recent = Recent(10.0, lambda: now)
    taken = []
    for pause, value in steps:
        now += pause
        recent.add(value)
        taken.append((now, value))
    now += later
    young = [value for time, value in taken if time >= now - 10]
    assert recent.values() == young
    assert math.isclose(recent.rate(), sum(young) / 10, abs_tol=1e-9)
