"""What one reconciliation has done: counted by the metrics, and told as a trace of the object."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from arctic_api import tracing
from arctic_api.tracing import Place, Span
from arctic_api.world import Label
from arctic_operator.cache import Key, Manifest
from arctic_operator.metrics import CHILD_WRITES
from arctic_operator.observed import LEADER_WORKER_SET, STATEFUL_SET

WORLDS = frozenset({"Job", STATEFUL_SET, LEADER_WORKER_SET})
"""Kinds of children that hold a world's pods."""


@dataclass
class Visit:
    """Of one object, from now on."""

    state: str = ""
    """What the status has come to, if that is news."""
    failure: str = ""
    writes: Counter[str] = field(default_factory=Counter)
    """Of children, by what was done to them."""
    worlds: list[tuple[Place, str, float]] = field(default_factory=list)
    """What was made that holds a world's pods: its span, its kind and name, and when. Never the manifest: tasks that
    begin within a visit, and outlive it, keep it."""
    begun: float = field(default_factory=time.monotonic)

    def tell(self, key: Key, uid: str) -> None:
        """Record it, unless nothing was done: an object is looked at all the time."""
        if not tracing.is_on() or not (self.writes or self.state or self.failure):
            return
        about = {"k8s.namespace.name": key.namespace, "arctic.kind": key.kind, "arctic.name": key.name}
        done: dict[str, str | int] = {f"arctic.children.{action}": count for action, count in self.writes.items()}
        if self.state:
            done["arctic.state"] = self.state
        made = tracing.record(
            Span(
                "reconcile",
                self.begun,
                time.monotonic(),
                under=Place.of(uid),
                error=self.failure,
                attributes={**about, **done},
            )
        )
        for place, child, moment in self.worlds:
            # The worker hangs what it does under this one.
            tracing.record(
                Span(
                    "make world",
                    self.begun,
                    moment,
                    under=made,
                    place=place,
                    attributes=about | {"arctic.child": child},
                )
            )


_visit: ContextVar[Visit] = ContextVar("visit")


@contextmanager
def visiting() -> Iterator[Visit]:
    """Have what is written within counted as one visit's."""
    token = _visit.set(Visit())
    try:
        yield _visit.get()
    finally:
        _visit.reset(token)


def count_write(action: Literal["apply", "create", "mark", "delete"], written: Manifest | None = None) -> None:
    """Count a write of a child, which the API server has answered with what is `written` now."""
    CHILD_WRITES.labels(action).inc()
    if (visit := _visit.get(None)) is None:
        return
    visit.writes[action] += 1
    if written is not None and action == "create" and written["kind"] in WORLDS:
        child = f"{written['kind']}/{written['metadata']['name']}"
        visit.worlds.append((_world_place(written), child, time.monotonic()))


def note_state(state: str) -> None:
    """Note that an object's status tells something new."""
    if (visit := _visit.get(None)) is not None:
        visit.state = state


def _world_place(manifest: Manifest) -> Place:
    """Return where the span of a world is, of what holds its pods."""
    metadata = manifest["metadata"]
    labels = metadata["labels"]
    return Place.of(labels[Label.UID], labels.get(Label.ATTEMPT) or labels.get(Label.GROUP) or metadata["name"])
