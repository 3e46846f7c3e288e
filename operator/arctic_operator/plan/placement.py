"""One world at a time holds nodes and waits for more: the oldest. The others give theirs back, and come after it.

It is the worlds of this operator alone that know of each other: among other tenants a queue decides (Kueue).
"""

from collections.abc import Sequence
from datetime import datetime

from arctic_operator.observed import Job, Pod, Rival, Training
from arctic_operator.plan.endings import Ending
from arctic_operator.rivals import GAVE_WAY, gave_way, holds_and_waits

LOOK_SECONDS = 5.0
"""Time after which it is looked again who else waits: nobody tells a world of another."""


def gives_way(
    training: Training, job: Job | None, pods: Sequence[Pod], rivals: Sequence[Rival], now: datetime
) -> Ending | None:
    """Return the end of an attempt whose nodes an older world waits for. A queue admits whole worlds by itself."""
    if job is None or job.deleting or job.queue or not holds_and_waits(pods, now):
        return None
    older = _older(training, [rival for rival in rivals if rival.holds])
    return Ending(GAVE_WAY, f"gave its nodes back: {_words(older)}", now) if older else None


def goes_after(training: Training, rivals: Sequence[Rival]) -> str:
    """Return whom a training that gave its nodes back waits for, as a sentence; empty once it is its turn."""
    older = _older(training, rivals) if gave_way(training.status) else None
    return _words(older) if older else ""


def _older(training: Training, rivals: Sequence[Rival]) -> Rival | None:
    own = Rival(training.identity, training.created, holds=True).order
    return min((rival for rival in rivals if rival.order < own), key=lambda rival: rival.order, default=None)


def _words(rival: Rival) -> str:
    who = f"{rival.identity.kind} {rival.identity.namespace}/{rival.identity.name}"
    return f"{who} goes first, and does not have all of its nodes yet"
