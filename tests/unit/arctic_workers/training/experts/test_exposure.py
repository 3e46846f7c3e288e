import time

from arctic_workers.training.experts.exposure import GRADIENTS, UPDATE, Flight, Flights, Which, shares

FORWARD = Which(0, "dispatch", backward=False)
BACK = Which(0, "dispatch", backward=True)


def test_chunks_that_fly_at_the_same_time_count_their_time_once() -> None:
    flights = [Flight(FORWARD, 0.0, 2.0), Flight(FORWARD, 1.0, 4.0, waited=1.0), Flight(FORWARD, 6.0, 7.0)]
    assert shares(flights)[FORWARD] == (5.0, 1.0)


def test_kinds_are_told_apart() -> None:
    parts = shares([Flight(FORWARD, 0.0, 2.0, waited=2.0), Flight(BACK, 2.0, 8.0)])
    assert parts == {FORWARD: (2.0, 2.0), BACK: (6.0, 0.0)}


def test_what_had_arrived_before_it_was_waited_for_is_in_flight_no_longer() -> None:
    flights = Flights()
    flight = flights.launched(0, "dispatch", backward=False)
    flight.arrived = flight.launched
    with flights.waiting(flight):
        pass
    [taken] = flights.take()
    assert taken.arrived == taken.launched
    assert flights.take() == []


def test_collectives_that_block_are_exposed_as_the_innermost_kind_and_as_none_outside_of_a_step() -> None:
    flights, began = Flights(), time.monotonic()
    with flights.blocking(UPDATE):
        with flights.blocking(GRADIENTS):
            flights.blocked(began)
        flights.blocked(began)
    flights.blocked(began)
    parts = shares(flights.take())
    assert list(parts) == [Which(None, GRADIENTS, backward=True), Which(None, UPDATE, backward=False)]
    assert all(share.exposed == share.in_flight for share in parts.values())
