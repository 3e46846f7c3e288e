"""An ablation's status. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from arctic_ablation.ranking import figures_of
from arctic_ablation.study import Found, Point, Study
from arctic_api.ablation import (
    ArcticAblationSpec,
    ArcticAblationStatus,
    ForetoldStatus,
    PointStatus,
    RankStatus,
    TrialStatus,
)
from arctic_operator.manifests.ablation import ablation_folder
from arctic_operator.manifests.common import best_name
from arctic_operator.observed import INVALID_SPEC, Trouble, figure_of, format_time
from arctic_operator.plan.conditions import Conditions, find
from arctic_operator.trials import Ablation, Trial

PROGRESS_FIELDS = frozenset({"tokens", "gpuHours"})


@dataclass(frozen=True)
class Outlook:
    """What is to be said of an ablation."""

    state: str
    failed: tuple[str, str] | None = None
    """Reason and sentence."""
    trouble: Trouble | None = None
    """What hinders it meanwhile."""
    foretold: Sequence[ForetoldStatus] = ()
    """What its swarm foretells."""
    reported: bool = False
    """Whether its folder has what was found."""


def found_of(spec: ArcticAblationSpec, status: TrialStatus) -> Found:
    """Return a training's status as a study reads it."""
    read = [(point, _figures(spec, point)) for point in status.points or ()]
    return Found([Point(point.tokens, figures) for point, figures in read if figures], status.message or "")


def legible(spec: ArcticAblationSpec, points: Iterable[PointStatus] | None) -> list[PointStatus]:
    """Return the rungs whose objective is a number still: what somebody has made of others says nothing."""
    return [point for point in points or () if _figures(spec, point)]


def _figures(spec: ArcticAblationSpec, point: PointStatus) -> dict[str, float] | None:
    value = figure_of(point.objective)
    try:
        return None if value is None else figures_of(spec.objective, value)
    except OverflowError:
        return None


def is_finished(status: ArcticAblationStatus, generation: int) -> bool:
    """Whether it has ended, for the specification that it has: an edit may let it go on.

    One that an operator could not read may be read by the next release, without an edit.
    """
    ends = (find(status.conditions, kind) for kind in ("Succeeded", "Failed"))
    told = [end for end in ends if end is not None and end.status == "True" and end.reason != INVALID_SPEC]
    return any(end.observed_generation == generation for end in told)


def ablation_status(
    ablation: Ablation,
    study: Study | None,
    trials: Mapping[str, TrialStatus],
    outlook: Outlook,
    now: datetime,
    seen: Mapping[str, Trial] = {},
) -> dict[str, Any]:
    """Return the whole status.

    Args:
        ablation: as it is.
        study: of it; None where it has none.
        trials: the status of each of its trainings.
        outlook: what is to be said.
        now: the time.
        seen: the trainings themselves, by name: they may be past their last rung.
    """
    conditions = Conditions(ablation.status.conditions, ablation.generation, now)
    broken = [trial for trial in trials.values() if trial.message]
    sentence = f"{len(broken)} trainings have failed; {broken[0].name}: {broken[0].message}" if broken else ""
    trouble = outlook.trouble or (Trouble("TrialsFailed", sentence) if broken else None)
    conditions.set("Degraded", bool(trouble), *((trouble.reason, trouble.message) if trouble else ("AsExpected",)))
    ended = outlook.state in ("Succeeded", "Failed")
    ranks = _ranking(ablation, study, trials) if study else []
    best = ranks[0].name if ranks else None
    conditions.set("Succeeded", outlook.state == "Succeeded", outlook.state, f"best: {best}" if best else "")
    reason, message = outlook.failed or (outlook.state, "")
    hours = sum(trial.gpu_hours for trial in seen.values())
    conditions.set("Failed", outlook.failed is not None, reason, message)
    return ArcticAblationStatus(
        state=outlook.state,
        observed_generation=ablation.generation,
        conditions=conditions.all(),
        planned=study.planned() if study else None,
        tokens=sum(max(trial.tokens, seen[name].tokens if name in seen else 0) for name, trial in trials.items()),
        gpu_hours=f"{hours:.3f}" if hours else None,
        trials=list(trials.values()) or None,
        ranking=ranks or None,
        foretold=list(outlook.foretold) or None,
        best=best,
        folder=ablation_folder(ablation) if outlook.reported else None,
        best_config_map=best_name(ablation.identity) if ended and best else None,
        completion_time=(ablation.status.completion_time or format_time(now)) if ended else None,
    ).wire()


def _ranking(ablation: Ablation, study: Study, trials: Mapping[str, TrialStatus]) -> list[RankStatus]:
    found = {name: found_of(ablation.spec, trial) for name, trial in trials.items()}
    return [
        RankStatus(
            name=rank.variant,
            tokens=rank.tokens,
            objective=f"{rank.mean.value:.4f}",
            interval=f"{rank.mean.low:.4f} to {rank.mean.high:.4f}" if rank.mean.seeds > 1 else None,
        )
        for rank in study.ranks(found)
    ]


def invalid_status(status: ArcticAblationStatus, message: str, generation: int, now: datetime) -> dict[str, Any]:
    """Return the status of an ablation whose specification can't be carried out; its trainings are left alone."""
    conditions = Conditions(status.conditions, generation, now)
    conditions.set("Degraded", True, INVALID_SPEC, message)
    conditions.set("Succeeded", False, INVALID_SPEC)
    conditions.set("Failed", True, INVALID_SPEC, message)
    fields = {"state": INVALID_SPEC, "observed_generation": generation, "conditions": conditions.all()}
    return status.model_copy(update=fields).wire()
