"""What is read of an ablation and its trainings, reduced to what plans need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from arctic_ablation.ranking import PERPLEXITY
from arctic_ablation.study import VariantStudy
from arctic_api.ablation import ArcticAblationSpec, ArcticAblationStatus
from arctic_api.common import parse_tokens
from arctic_api.evaluation import ArcticEvaluationStatus
from arctic_api.training import ArcticTrainingStatus
from arctic_operator.observed import Identity, Job, Node, Pod, conditions_of, figure_of, number_of, read_status

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
    odd: str = ""
    """What of that evaluation is no figure, as a sentence; empty where all is."""
    gpu_hours: float = 0.0
    checkpoint: str = ""
    """URI of what it has come to, once that is committed."""

    @property
    def rests(self) -> bool:
        """Whether it has come as far as it may, and was judged there."""
        if self.state == "Succeeded":
            return True
        return self.state == "Suspended" and self.until is not None and self.tokens >= self.until


@dataclass(frozen=True)
class Judgement:
    """An evaluation of a training where it rests."""

    name: str
    uid: str
    deleting: bool
    figures: Mapping[str, float]
    """The own figure of each suite that is done, by suite."""
    ended: bool
    failed: str
    """Why it has failed, or a suite has no figure; empty for one that has all, or may."""


@dataclass(frozen=True)
class AblationSeen:
    """All that is known about the trainings of an ablation."""

    trials: Mapping[str, Trial] = field(default_factory=dict)
    judgements: Mapping[str, Judgement] = field(default_factory=dict)
    """Evaluations of these, by name."""
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
    figures, odd = _read_figures(status.evaluation or {})
    return Trial(
        name=metadata["name"],
        uid=metadata["uid"],
        until=None if until is None else parse_tokens(until),
        state=status.state or "",
        tokens=status.tokens or 0,
        figures=figures,
        failed=words if failed.get("status") == "True" else "",  # one that an edit would mend, too: nobody edits it
        deleting="deletionTimestamp" in metadata,
        odd=odd,
        gpu_hours=number_of(status.gpu_hours),
        checkpoint=_committed(status),
    )


def _read_figures(told: Mapping[str, str]) -> tuple[dict[str, float], str]:
    """Return those texts that are figures, and what the others are: nobody's perplexity is 0."""
    read = {name: figure_of(text) for name, text in told.items()}
    figures = {
        name: figure
        for name, figure in read.items()
        if figure is not None and (figure > 0 or not name.startswith(PERPLEXITY))
    }
    odd = [f"{name} is {text!r}, which is no figure of it" for name, text in told.items() if name not in figures]
    return figures, "; ".join(odd)


def _committed(status: ArcticTrainingStatus) -> str:
    """Return the URI of the checkpoint with all that was trained; empty before it is committed."""
    last = status.last_checkpoint
    return last.uri if last is not None and last.tokens >= (status.tokens or 0) else ""


def judgement_of(manifest: Manifest) -> Judgement:
    """Reduce an ArcticEvaluation that is an ablation's own."""
    metadata, conditions = manifest["metadata"], conditions_of(dict(manifest))
    status = read_status(ArcticEvaluationStatus, dict(manifest.get("status") or {}))
    suites = {suite.name: suite for suite in status.suites or ()}
    done = {name: suite.figures for name, suite in suites.items() if suite.state == "Done" and suite.figures}
    failed, succeeded = (conditions.get(kind, {}) for kind in ("Failed", "Succeeded"))
    figures, odd = _read_figures({name: figures[0].value for name, figures in done.items()})
    words = [f"{name}: {suite.message or suite.state}" for name, suite in suites.items() if name not in done]
    words += [odd] if odd else []
    if failed.get("status") == "True":
        words = [failed.get("message") or failed.get("reason", "")]
    ended = "True" in (failed.get("status"), succeeded.get("status"))
    return Judgement(
        name=metadata["name"],
        uid=metadata["uid"],
        deleting="deletionTimestamp" in metadata,
        figures=figures,
        ended=ended,
        failed="; ".join(words) if ended else "",
    )
