"""What a step would take if its schedule lost nothing: its own pieces of work, and a link that rests only when idle.

A schedule is what a rank's thread does in a step: work, the launch of an exchange, or the wait for one. The link
carries the exchanges in the order of their launches, each at the full rate of the link.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Event(NamedTuple):
    """The launch of an exchange or the wait for it, and the work before."""

    work: float
    """Seconds of the processor since the event before."""
    exchange: int | None
    """Its number in the order of launches; None for the end of the step."""
    launch: bool
    sent: int = 0
    """Bytes that a launch sends to the other rank, or receives from it, whichever are more."""


class Ideal(NamedTuple):
    """Seconds of a step, and of these the ones in which it waits."""

    step: float
    waited: float


def ideal(events: Iterable[Event], bytes_per_second: float) -> Ideal:
    """Return what the schedule takes on a link of that rate."""
    now = link_free = waited = 0.0
    arrivals: dict[int, float] = {}
    for event in events:
        now += event.work
        if event.exchange is None:
            continue
        if event.launch:
            link_free = max(now, link_free) + event.sent / bytes_per_second
            arrivals[event.exchange] = link_free
        else:
            waited += max(0.0, arrivals[event.exchange] - now)
            now = max(now, arrivals[event.exchange])
    return Ideal(now, waited)


def in_place(events: Iterable[Event], bytes_per_second: float) -> Ideal:
    """Return what the same work takes when each exchange is waited for where it is launched."""
    events = list(events)
    waited = sum(event.sent for event in events if event.launch) / bytes_per_second
    return Ideal(sum(event.work for event in events) + waited, waited)


def events_of(recorded: Iterable[Mapping[str, float | int | bool | None]]) -> list[Event]:
    """Read what a rank has told."""
    return [Event(**entry) for entry in recorded]  # type: ignore[arg-type]
