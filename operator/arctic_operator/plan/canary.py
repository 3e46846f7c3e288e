"""A canary: the newest revision gets a share of the requests, the one before it the rest, until somebody decides.

The share is of requests, whatever number of groups each has. Groups follow it as far as their number can, so that a
canary takes no more nodes than a rollout may.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from arctic_api.inference import ArcticInferenceStatus
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
    """Return the revision that all groups were of last; before that was noted, the one of the oldest other group."""
    if status.stable_revision:
        return status.stable_revision
    return next((group.revision for group in groups if group.revision != newest), None)


def canary_of(inference: Inference, seen: InferenceSeen, target: Target) -> Canary | Trouble | None:
    """Return the canary that the specification asks for, or why there can be none.

    None where there is nothing to compare the newest revision with.
    """
    asked = inference.spec.rollout.canary
    if asked is None or target.pinned:
        return None
    name = stable_revision(inference.status, seen.groups, target.name)
    if name is None or name == target.name:
        return None
    stable = pinned_target(inference, seen, name)
    if isinstance(stable, Trouble):
        message = (
            f"rollout.canary: revision {name} was not recorded, so nothing moves: take canary out, or the change back"
        )
        return Trouble("NoStableRevision", message)
    # Made at its own generation: what is made at this one passes for what the specification asks for now.
    generation = next(each.generation for each in seen.history if each.name == name)
    stable = replace(stable, inference=replace(stable.inference, generation=generation))
    return Canary(stable, int(asked.weight.removesuffix("%")))
