"""What is read of an ablation and its trainings, reduced to what plans need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from arctic_ablation.study import VariantStudy
from arctic_api.ablation import ArcticAblationSpec, ArcticAblationStatus
from arctic_api.common import parse_tokens
from arctic_api.training import ArcticTrainingStatus
from arctic_operator.observed import Identity, Job, Node, Pod, conditions_of, read_status

if TYPE_CHECKING:
    from arctic_ablation.swarm.study import SwarmStudy  # which needs numpy

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Ablation:
    """An ArcticAblation whose specification could be read."""

    identity: Identity
    generation: int
    deleting: bool
    study: "VariantStudy | SwarmStudy"
    status: ArcticAblationStatus

    @property
    def spec(self) -> ArcticAblationSpec:
        """Its specification."""
        return self.study.spec


@dataclass(frozen=True)
class Trial:
    """A training of an ablation."""

    name: str
    uid: str
    until: int | None
    """Tokens at which it is suspended; None for one that goes to its end."""
    state: str
    tokens: int
    figures: Mapping[str, float]
    """Of its last evaluation."""
    failed: str
    """Why it has failed for good; empty for one that has not."""
    deleting: bool
    gpu_hours: float = 0.0

    @property
    def rests(self) -> bool:
        """Whether it has come as far as it may, and was judged there."""
        if self.state == "Succeeded":
            return True
        return self.state == "Suspended" and self.until is not None and self.tokens >= self.until


@dataclass(frozen=True)
class AblationSeen:
    """All that is known about the trainings of an ablation."""

    trials: Mapping[str, Trial] = field(default_factory=dict)
    earlier: ArcticAblationStatus = field(default_factory=ArcticAblationStatus)
    """Of the ablation that it reuses."""
    jobs: Sequence[Job] = ()
    """That foretell from a swarm."""
    pods: Sequence[Pod] = ()
    """Of these."""
    nodes: Mapping[str, Node] | None = None
    """None where nodes may not be read."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Why a Job has no pod, by its name, where that was asked for."""


def trial_of(manifest: Manifest) -> Trial:
    """Reduce an ArcticTraining."""
    metadata, until = manifest["metadata"], manifest["spec"].get("suspendAt")
    status = read_status(ArcticTrainingStatus, dict(manifest.get("status") or {}))
    failed = conditions_of(dict(manifest)).get("Failed", {})
    words = failed.get("message") or failed.get("reason", "")
    return Trial(
        name=metadata["name"],
        uid=metadata["uid"],
        until=None if until is None else parse_tokens(until),
        state=status.state or "",
        tokens=status.tokens or 0,
        figures={name: float(value) for name, value in (status.evaluation or {}).items()},
        failed=words if failed.get("status") == "True" and status.completion_time else "",
        deleting="deletionTimestamp" in metadata,
        gpu_hours=float(status.gpu_hours or 0),
    )
