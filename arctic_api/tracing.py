"""Traces of operator and workers, by OpenTelemetry: off, and nothing of it imported, unless there is an endpoint.

A span is recorded when what it tells of is over. Others hang theirs under it before that, and in other processes, as
its ids are known to all: an object's uid is the id of its trace, and a span's follows from what it is of. So nothing
is carried from the operator to its workers, and nothing kept.
"""

import hashlib
import logging
import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

log = logging.getLogger(__name__)

Attributes = Mapping[str, str | bool | int | float | Sequence[str]]

_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True)
class Place:
    """A span's ids."""

    trace: int
    """128 bits."""
    span: int
    """64 bits; 0 is no span: what is put under it has none above it."""
    sampled: bool = True

    @classmethod
    def of(cls, uid: str, *what: str) -> Self:
        """Return where the span of something about an object is; of nothing, the object's trace alone.

        What the operator makes of an object is named by an attempt's number or a group's name.
        """
        return cls(_trace(uid), _digest("/".join((uid, *what)), 8) if what else 0)

    @classmethod
    def drawn(cls, uid: str) -> Self:
        """Return a place for a span in an object's trace that only its own process has to know."""
        return cls(_trace(uid), secrets.randbits(64) or 1)

    @classmethod
    def read(cls, traceparent: str) -> Self | None:
        """Return what a header of W3C Trace Context (level 1) says; None for one that is to be ignored."""
        match = _TRACEPARENT.fullmatch(traceparent)
        if match is None or (match[1] == "00" and match[5]):  # later versions may say more
            return None
        trace, span, flags = (int(match[part], 16) for part in (2, 3, 4))
        return cls(trace, span, bool(flags & 1)) if trace and span else None


@dataclass(frozen=True)
class Span:
    """What is told of something that is over."""

    name: str
    """What it is, one of few."""
    begun: float
    """Its first moment, by `time.monotonic`."""
    ended: float
    """Its last one."""
    under: Place | None = None
    """Its parent; without one a trace begins."""
    place: Place | None = None
    """Its own ids, where others know them; else they are drawn."""
    links: Sequence[Place] = ()
    """Spans of other traces that it has to do with."""
    kind: Literal["internal", "server"] = "internal"
    """Whether it answers a request of somebody else's."""
    error: str = ""
    """Why it failed, if it did."""
    attributes: Attributes = field(default_factory=dict)


class Recorder(Protocol):
    """What keeps spans and sends them."""

    def record(self, span: Span) -> Place:
        """See `record`."""
        ...

    def end(self) -> None:
        """See `end`."""
        ...


_recorder: Recorder | None = None


def begin(service: str, endpoint: str, about: Attributes) -> None:
    """Record from now on, if there is an endpoint: as this service, `about` what each of its spans is.

    Without the library it says so and goes on: no work is left undone because nobody can watch it.
    """
    global _recorder
    if not endpoint:
        return
    try:
        from arctic_api import otlp
    except ImportError as error:
        log.warning(
            "no traces are sent to %s, as the environment lacks OpenTelemetry (%s): use an image with "
            "arctic-kubernetes[tracing]",
            endpoint,
            error,
        )
        return
    _recorder = otlp.Sender(service, endpoint, about)


def is_on() -> bool:
    """Whether spans are recorded."""
    return _recorder is not None


def record(span: Span) -> Place | None:
    """Record a span; return its place, None where nothing is recorded."""
    return None if _recorder is None else _recorder.record(span)


def end() -> None:
    """Send what is left, for a moment, and record no more."""
    global _recorder
    if _recorder is not None:
        _recorder.end()
        _recorder = None


def _trace(uid: str) -> int:
    """Return the id of an object's trace: its uid, which may be any text but is a UUID wherever Kubernetes made it."""
    try:
        return uuid.UUID(uid).int
    except ValueError:
        return _digest(uid, 16)


def _digest(text: str, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "big")
