"""Traces of requests: what is written is read, what is wrong is named, and a seed says all."""

from __future__ import annotations

import pytest

from arctic_simulator.requests import Arrival, Crowd, faster, read_trace, write_trace

CROWD = Crowd(0.5, 8.0, 60.0, 20.0, prompt=50, answer=20, spread=0.7, longest=200)


def test_a_trace_comes_back_from_its_file(tmp_path):
    arrivals = CROWD.arrivals(120.0, seed=1)
    write_trace(tmp_path / "trace", arrivals)
    assert [(each.prompt, each.answer) for each in read_trace(tmp_path / "trace")] == [
        (each.prompt, each.answer) for each in arrivals
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "has no requests"),
        ('{"seconds": 1, "prompt": 3}\n', "line 1.*answer"),
        ('{"seconds": 1, "prompt": 3, "answer": 1}\nnonsense\n', "line 2"),
        ('{"seconds": 1, "prompt": 0, "answer": 1}\n', "line 1.*at least 1 token"),
        ('{"seconds": NaN, "prompt": 1, "answer": 1}\n', "finite"),
        ('{"seconds": 1, "prompt": 1e400, "answer": 1}\n', "line 1.*infinity"),
        ("[1, 2, 3]\n", "line 1"),
        ('{"seconds": 2, "prompt": 1, "answer": 1}\n{"seconds": 1, "prompt": 1, "answer": 1}\n', "fall"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, text, fault):
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(ValueError, match=fault):
        read_trace(path)


def test_the_same_seed_draws_the_same_requests_and_another_others():
    assert CROWD.arrivals(300.0, seed=4) == CROWD.arrivals(300.0, seed=4)
    assert CROWD.arrivals(300.0, seed=4) != CROWD.arrivals(300.0, seed=5)


def test_a_crowd_comes_at_the_mean_of_its_rates_and_in_order():
    arrivals = CROWD.arrivals(40_000.0, seed=3)
    mean = (0.5 * 60 + 8.0 * 20) / 80
    assert len(arrivals) / 40_000 == pytest.approx(mean, rel=0.1)
    assert arrivals == sorted(arrivals, key=lambda each: each.seconds)
    assert all(1 <= each.prompt <= 200 and 1 <= each.answer <= 200 for each in arrivals)


def test_a_trace_that_is_sent_faster_has_the_same_requests():
    assert faster([Arrival(10.0, 3, 4)], 20.0) == [Arrival(0.5, 3, 4)]
