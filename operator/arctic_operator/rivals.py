"""Worlds that hold nodes while they wait for more, and those that gave theirs back for another. Pure.

A scheduler that places pods one by one may give each of two worlds half of what both need, and neither ever starts.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from arctic_api.training import ArcticTrainingStatus
from arctic_operator.observed import Pod

GAVE_WAY = "GaveWay"
"""Reason of an attempt that gave its nodes back."""
PATIENCE = timedelta(seconds=10)
"""How long a pod waits for a node before its world counts as one that the others keep from it."""
SCARCE = "Insufficient"
"""The scheduler's word for what others have taken: a node that is lost comes back to all, in whatever order."""


def holds_and_waits(pods: Iterable[Pod], now: datetime) -> bool:
    """Whether some of a world's pods have nodes while others have waited for one in vain."""
    alive = [pod for pod in pods if not pod.ended and pod.delete_requested is None]
    waits = any(SCARCE in pod.unschedulable and not pod.node and now - pod.created >= PATIENCE for pod in alive)
    return waits and any(pod.node for pod in alive)


def needs_of(spec: Mapping[str, Any]) -> str:
    """Return which nodes a specification, as stored, asks for: worlds that ask for others take nothing from each other.

    Those that ask otherwise for the same nodes are taken for such: who gave way to one of them might wait for nothing.
    """
    template, resources = spec.get("template") or {}, spec.get("resources") or {}
    names = sorted({*(resources.get("requests") or ()), *(resources.get("limits") or ())})
    names += [claim["templateName"] for claim in template.get("deviceClaims") or ()]
    where = [
        template.get("nodeSelector"),
        template.get("tolerations"),
        (template.get("affinity") or {}).get("nodeAffinity"),
    ]
    return json.dumps([names, where, spec.get("priorityClassName")], sort_keys=True)


def gave_way(status: ArcticTrainingStatus) -> bool:
    """Whether a training's newest attempt has given its nodes back."""
    records = status.attempts or ()
    return any(record.number == status.attempt and record.reason == GAVE_WAY for record in records)


def worlds_of(pods: Sequence[Pod]) -> Iterator[list[Pod]]:
    """Yield the pods of each world of one object: an attempt's, or a group's."""

    def world(pod: Pod) -> tuple[int, str]:
        return pod.attempt or 0, pod.group or ""

    for _, members in itertools.groupby(sorted(pods, key=world), world):
        yield list(members)
