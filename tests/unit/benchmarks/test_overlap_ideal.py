import pytest

from benchmarks.overlap_ideal import Event, ideal

END = Event(1.0, None, launch=False)


def test_an_exchange_behind_work_costs_nothing() -> None:
    events = [Event(1.0, 0, launch=True, sent=20), Event(3.0, 0, launch=False), END]
    assert ideal(events, 10.0) == (5.0, 0.0)


def test_a_link_carries_one_exchange_after_the_other() -> None:
    launches = [Event(0.0, number, launch=True, sent=10) for number in range(2)]
    waits = [Event(0.5, number, launch=False) for number in range(2)]
    # The first arrives after 1 s, of which half is work; the second a second later, of which another half is.
    assert ideal([*launches, *waits, END], 10.0) == pytest.approx((3.0, 1.0))
