"""Rates and values of the last moments."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from arctic_workers.inference import metrics
from arctic_workers.inference.engine import Stats
from arctic_workers.inference.metrics import Metrics, Recent


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


def test_what_a_canary_is_judged_by_is_one_value_a_request_and_nothing_that_a_client_broke_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    counted = Metrics(CollectorRegistry(), Stats)
    for outcome, moments in (("stop", [2.0, 2.5, 6.0]), ("length", [3.0]), ("cancelled", [1.0, 2.0]), ("failed", [])):
        now[0] = 0.0
        timer = counted.request(1)
        for now[0] in moments:
            timer.token(None)
        timer.end(outcome)
    assert (counted.ended, counted.failed) == (3, 1)
    assert (counted.ttft_logs.count, counted.ttft_logs.sum) == (3, pytest.approx(math.log(2.0 * 3.0 * 1.0)))
    assert counted.ttft_logs.sum_of_squares == pytest.approx(math.log(2.0) ** 2 + math.log(3.0) ** 2)
    assert counted.per_token_logs.count == 1, "one token has none after it"
    assert counted.per_token_logs.sum == pytest.approx(math.log((0.5 + 3.5) / 2))


def test_times_are_those_of_the_making_however_late_an_answer_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    counted = Metrics(CollectorRegistry(), Stats)
    timer = counted.request(1)
    now[0] = 100.0
    for made in (2.0, 2.5, 6.0):
        timer.token(made)
    timer.end("length")
    assert counted.ttft_logs.sum == pytest.approx(math.log(2.0))
    assert counted.per_token_logs.sum == pytest.approx(math.log((0.5 + 3.5) / 2))
    sums = {f"arctic_inference_{name}_seconds_sum": seconds for name, seconds in
            (("time_to_first_token", 2.0), ("time_per_output_token", 4.0), ("e2e_latency", 6.0))}  # fmt: skip
    assert {name: counted.registry.get_sample_value(name) for name in sums} == sums
