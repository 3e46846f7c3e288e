"""How much of a step's communication is left exposed: measured, exchange by exchange, not modelled.

An exchange is in flight from its launch to its arrival, which the thread notes that finished it. It is exposed while
the rank's own thread can do nothing but wait for it: a collective that blocks is exposed all the time.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

GRADIENTS, UPDATE = "gradients", "update"
"""ZeRO's kinds, which belong to no layer: gradients to the ranks that keep them; their norm, and new weights to all."""


class Which(NamedTuple):
    """Exchanges that are told of together."""

    layer: int | None
    """None for what goes in buckets of many layers."""
    kind: str
    """As `exchange.Kind`, `heads` of sequences that ranks share, or of ZeRO's."""
    backward: bool


@dataclass
class Flight:
    """One exchange; seconds of the monotonic clock."""

    which: Which
    launched: float
    arrived: float | None = None
    waited: float = 0.0
    """Seconds that the rank's own thread did nothing but wait for it."""


class Share(NamedTuple):
    """Seconds that exchanges were in flight, and of these the ones in which the rank waited for them."""

    in_flight: float
    exposed: float


class Flights:
    """The flights of a step."""

    def __init__(self) -> None:
        self._flights: list[Flight] = []
        self._blocking: str | None = None

    def launched(self, layer: int, kind: str, *, backward: bool) -> Flight:
        """Note that an exchange starts now."""
        flight = Flight(Which(layer, kind, backward), time.monotonic())
        self._flights.append(flight)
        return flight

    def watch(self, flight: Flight, work: Any) -> None:
        """Have the arrival noted by whichever thread finishes the exchange."""

        def arrived(_: Any) -> None:
            flight.arrived = time.monotonic()

        work.get_future().add_done_callback(arrived)

    @contextmanager
    def waiting(self, flight: Flight) -> Iterator[None]:
        """Count the seconds of this block as waiting for the exchange, which is there at its end."""
        begin = time.monotonic()
        yield
        end = time.monotonic()
        flight.waited += end - begin
        # The other thread may come to its note later: it needs the interpreter.
        flight.arrived = min(flight.arrived or end, end)

    @contextmanager
    def blocking(self, kind: str) -> Iterator[None]:
        """Have the collectives of this block that block told of as of a kind."""
        around, self._blocking = self._blocking, kind
        try:
            yield
        finally:
            self._blocking = around

    def blocked(self, since: float) -> None:
        """Note that a collective has blocked the rank's own thread since a moment, until now."""
        if self._blocking is not None:
            now, which = time.monotonic(), Which(None, self._blocking, self._blocking == GRADIENTS)
            self._flights.append(Flight(which, since, now, now - since))

    def take(self) -> list[Flight]:
        """Return the flights since the last call, all of which have been waited for."""
        flights, self._flights = self._flights, []
        return flights


def shares(flights: Iterable[Flight]) -> dict[Which, Share]:
    """Return the share of each kind: chunks that fly at the same time count their time once."""
    by_which: dict[Which, list[Flight]] = defaultdict(list)
    for flight in flights:
        by_which[flight.which].append(flight)
    return {which: Share(_covered(those), sum(flight.waited for flight in those)) for which, those in by_which.items()}


def _covered(flights: Iterable[Flight]) -> float:
    """Return the seconds in which at least one of them was under way."""
    seconds, until = 0.0, float("-inf")
    for flight in sorted(flights, key=lambda flight: flight.launched):
        assert flight.arrived is not None, "a flight is looked at once it has arrived"
        seconds += max(0.0, flight.arrived - max(flight.launched, until))
        until = max(until, flight.arrived)
    return seconds
