"""Which revision a service should be of, and what its earlier ones were: each is kept whole, to be made again exactly.

A revision is recorded before its first group is made, as a ControllerRevision of the cluster's own API.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from arctic_api.common import BaseWeights
from arctic_api.inference import ArcticInferenceSpec
from arctic_api.world import group_index
from arctic_operator.manifests.common import Manifest, revision_of
from arctic_operator.manifests.history import recorded_revision
from arctic_operator.observed import GroupSet, Inference, InferenceSeen, Revision, Trouble
from arctic_operator.plan.actions import Delete

KEPT = 10
"""Revisions that are kept besides those in use, as many as a Deployment keeps."""


@dataclass(frozen=True)
class Target:
    """What groups are to be made of."""

    inference: Inference
    """The service as its specification was, or is, at this revision."""
    base: BaseWeights | None
    """The weights of the training that it names."""
    name: str
    """The revision."""
    pinned: bool = False
    """Whether it is one that was recorded, and not what the specification says now."""
    forgotten: bool = False
    """Whether its record is gone, or can't be read: groups of it can be kept, and none be made."""

    def agrees(self, group: GroupSet) -> bool:
        """Whether a group is what is asked for: nothing has been edited, or nothing that it is made of.

        One that agrees with the specification of this generation is up to date, whatever its revision: an upgrade of
        ours that computes revisions otherwise must not replace groups that serve. Nor must weights that are gone.
        """
        inference = self.inference
        if self.pinned:
            return group.revision == self.name
        if group.generation != inference.generation and group.specification != inference.revision:
            return False
        known = inference.spec.model.training is None or self.base is not None
        return not known or group.weights == (self.base.folder if self.base else "")


def target_of(inference: Inference, seen: InferenceSeen) -> tuple[Target, Trouble | None]:
    """Return what the groups should be of, and why it is not what `rollout.toRevision` asks for, if it is not.

    One that can't be gone back to leaves the service at the revision that it has.
    """
    asked = inference.spec.rollout.to_revision
    if asked is None:
        return newest_target(inference, seen), None
    found = pinned_target(inference, seen, asked)
    if isinstance(found, Target):
        return found, None
    known = inference.status.revision or ""
    held = pinned_target(inference, seen, known)
    if isinstance(held, Target):
        return held, found
    if any(group.revision == known and not group.deleting for group in seen.groups):
        return Target(inference, seen.base, known, pinned=True, forgotten=True), found
    return newest_target(inference, seen), found


def newest_target(inference: Inference, seen: InferenceSeen) -> Target:
    """Return what the specification says."""
    computed = revision_of({"spec": inference.revision, "weights": seen.base.folder if seen.base else ""})
    target = Target(inference, seen.base, computed)
    same = [group for group in seen.groups if target.agrees(group)]
    return replace(target, name=max(same, key=_index).revision if same else _rolled_back(inference, seen) or computed)


def _rolled_back(inference: Inference, seen: InferenceSeen) -> str | None:
    """Return the canary that was rolled back if the specification, and the weights that it names, are those still.

    No group tells its name any more, and an upgrade of ours that computes another would try it again.
    """
    decided, unedited = inference.status.canary, inference.status.observed_generation == inference.generation
    if decided is None or decided.verdict != "RolledBack" or not unedited:
        return None
    recorded = (each.weights for each in seen.history if each.name == decided.revision)
    folders = [weights.folder if weights else None for weights in recorded]
    return decided.revision if folders == [seen.base.folder if seen.base else None] else None


def pinned_target(inference: Inference, seen: InferenceSeen, name: str) -> Target | Trouble:
    """Return an earlier revision as it was, but for what a group is not made of."""
    recorded = next((each for each in seen.history if each.name == name), None)
    if recorded is None:
        kept = ", ".join(each.name for each in _newest_first(seen.history)) or "none"
        return Trouble("NoSuchRevision", f"rollout.toRevision: there is no revision {name}: write one of {kept}")
    current = {field: value for field, value in inference.spec.wire().items() if field not in recorded.made_of}
    before = {field: value for field, value in recorded.made_of.items() if value is not None}
    try:
        spec = ArcticInferenceSpec.model_validate(current | before)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        message = f"rollout.toRevision: this version of the operator can't read {name}: {place}: {fault['msg']}"
        return Trouble("UnreadableRevision", message)
    as_it_was = replace(inference, spec=spec, revision=recorded.specification, made_of=recorded.made_of)
    return Target(as_it_was, recorded.weights, name, pinned=True)


def _index(group: GroupSet) -> int:
    return group_index(group.name)


def _newest_first(history: Iterable[Revision]) -> list[Revision]:
    return sorted(history, key=lambda each: (each.generation, each.created, each.name), reverse=True)


def records(target: Target, seen: InferenceSeen) -> list[Manifest]:
    """Return the record of a revision that has none yet, once there is something to make it of."""
    inference = target.inference
    known = any(each.name == target.name for each in seen.history)
    if known or target.forgotten or (inference.spec.model.training is not None and target.base is None):
        return []
    return [recorded_revision(inference, target.name, target.base)]


def forgotten(inference: Inference, seen: InferenceSeen, used: Sequence[str]) -> Iterable[Delete]:
    """Return the oldest records beyond those that are kept; those in use stay."""
    spare = [each for each in _newest_first(seen.history) if each.name not in used]
    for each in spare[KEPT:]:
        yield Delete("ControllerRevision", inference.identity.namespace, each.object_name, each.uid)


def told_revisions(seen: InferenceSeen) -> list[Revision]:
    """Return what can be gone back to, the newest first."""
    return _newest_first(seen.history)
