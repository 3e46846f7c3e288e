"""A canary: the newest revision gets a share of the requests, the one before it the rest, until somebody decides.

The share is of requests, whatever number of groups each has. Groups follow it as far as their number can, so that a
canary takes no more nodes than a rollout may.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from arctic_api.inference import ArcticInferenceStatus, CanaryStatus
from arctic_operator.observed import GroupSet, Inference, InferenceSeen, Trouble
from arctic_operator.plan.inference_history import Target, pinned_target


@dataclass(frozen=True)
class Canary:
    """Two revisions that serve beside each other."""

    stable: Target
    """The one before, of which everything was."""
    share: int
    """Percent of the requests that go to the newest one."""

    def counts(self, desired: int) -> tuple[int, int]:
        """Return how many groups are of the newest revision and how many of the stable one; at least one of each."""
        newest = min(desired, max(1, math.ceil(self.share * desired / 100)))
        return newest, max(1, desired - newest)


def stable_revision(status: ArcticInferenceStatus, groups: Sequence[GroupSet], newest: str) -> str | None:
    """Return the revision that all groups were of last; before that was noted, the one of the oldest other group.

    None while no group has ever been ready: what has never served is nothing to compare with.
    """
    if status.stable_revision or not status.start_time:
        return status.stable_revision
    return next((group.revision for group in groups if group.revision != newest), None)


def canary_of(inference: Inference, seen: InferenceSeen, target: Target) -> Canary | Trouble | None:
    """Return the canary that the specification asks for, or why there can be none.

    None where there is nothing to compare the newest revision with.
    """
    asked = inference.spec.rollout.canary
    decided = decision_on(inference, target.name)
    if asked is None or target.pinned or (decided and decided.verdict == "Promoted"):
        return None
    name = stable_revision(inference.status, seen.groups, target.name)
    if name is None or name == target.name:
        return None
    stable = _as_recorded(inference, seen, name)
    if isinstance(stable, Trouble):
        message = (
            f"rollout.canary: revision {name} was not recorded, so nothing moves: take canary out, or the change back"
        )
        return Trouble("NoStableRevision", message)
    return Canary(stable, int(asked.weight.removesuffix("%")))


def _as_recorded(inference: Inference, seen: InferenceSeen, name: str) -> Target | Trouble:
    """Return an earlier revision, made at its own generation: what is made at this one passes for what is asked now."""
    stable = pinned_target(inference, seen, name)
    if isinstance(stable, Trouble):
        return stable
    generation = next(each.generation for each in seen.history if each.name == name)
    return replace(stable, inference=replace(stable.inference, generation=generation))


def decision_on(inference: Inference, revision: str) -> CanaryStatus | None:
    """Return what the analysis says of a revision; nothing where none is asked for (any more)."""
    asked, known = inference.spec.rollout.canary, inference.status.canary
    asked_for = asked is not None and asked.analysis is not None
    return known if asked_for and known and known.revision == revision else None


def unless_refused(inference: Inference, seen: InferenceSeen, target: Target) -> tuple[Target, Trouble | None]:
    """Return the stable revision, and why, in place of one that the analysis has rolled back."""
    decided = None if target.pinned else decision_on(inference, target.name)
    stable = inference.status.stable_revision
    if decided is None or decided.verdict != "RolledBack" or not stable or stable == target.name:
        return target, None
    found = _as_recorded(inference, seen, stable)
    if isinstance(found, Trouble):
        return target, found
    message = (
        f"revision {target.name} was rolled back to {stable}: {decided.message}: change what it is made of, or take "
        "analysis out to have it nevertheless"
    )
    return found, Trouble("CanaryRolledBack", message)
