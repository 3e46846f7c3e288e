"""What an ablation's trainings should be now. Pure.

What a training has come to is written into the status before anything follows from it: a training says only where it is
now, and once it goes on from a rung the status alone knows what it was like there.
"""

from collections.abc import Mapping
from datetime import datetime

from arctic_ablation.ranking import NoFigure, objective
from arctic_ablation.study import Run, Step, VariantStudy, affordable
from arctic_ablation.variants import VariantError
from arctic_ablation.winner import best_manifest
from arctic_api.ablation import PointStatus, TrialState, TrialStatus
from arctic_api.common import parse_tokens
from arctic_api.training import KIND as TRAINING
from arctic_operator.manifests.ablation import best as best_config
from arctic_operator.manifests.ablation import trial as trial_manifest
from arctic_operator.plan.ablation_status import Outlook, ablation_status, found_of, is_finished
from arctic_operator.plan.actions import Delete, Plan
from arctic_operator.trials import Ablation, AblationSeen, Trial

LOOK_SECONDS = 5.0
"""Trainings tell by their status; this is for what no event tells."""
ON_A_LAPTOP = "a swarm's regression runs in `arctic ablate`, on one machine, and not yet here: write grid or changes"


def plan_ablation(ablation: Ablation, seen: AblationSeen, now: datetime) -> Plan:
    """Return what to do for an ablation, and its status."""
    if ablation.deleting:
        return Plan()
    if is_finished(ablation.status, ablation.generation):
        return Plan(status=ablation.status.wire())
    if ablation.spec.mixture is not None:
        return Plan(
            status=ablation_status(ablation, None, {}, Outlook("Failed", failed=("NotYetHere", ON_A_LAPTOP)), now)
        )
    study = ablation.study
    try:
        known = {run.name: _trial_status(ablation, seen, run) for run in study.all_runs({})}
    except (VariantError, NoFigure) as error:
        outlook = Outlook("Failed", failed=(type(error).__name__, str(error)))
        return Plan(status=ablation_status(ablation, None, {}, outlook, now))
    return _plan(ablation, seen, study, known, now)


def _plan(
    ablation: Ablation, seen: AblationSeen, study: VariantStudy, known: Mapping[str, TrialStatus], now: datetime
) -> Plan:
    found = {name: found_of(ablation.spec, status) for name, status in known.items()}
    trained = {name: trial.tokens for name, trial in seen.trials.items()}
    strangers = _strangers(ablation, seen, known)
    if _points(known) != _points({each.name: each for each in ablation.status.trials or ()}):
        status = ablation_status(ablation, study, known, Outlook("Running"), now, trained)
        return Plan(delete=strangers, status=status, requeue_after=0.1)
    steps = {step.run.name: step for step in study.steps(found)}
    running = [step for name, step in steps.items() if _is_under_way(step, seen.trials.get(name))]
    free = max(0, ablation.spec.parallelism - len(running))
    wanted = [step for step in steps.values() if step not in running][:free]
    budget = None if ablation.spec.budget is None else parse_tokens(ablation.spec.budget)
    spent = sum(each.tokens for each in found.values()) + sum(step.cost(found) for step in running)
    chosen = affordable(wanted, found, budget, spent)
    if not running and not chosen:
        best = best_manifest(ablation.identity.name, ablation.spec, study, found)
        left = (best_config(ablation.identity, best),) if best else ()
        status = ablation_status(ablation, study, known, _ending(best is not None, bool(wanted)), now, trained)
        return Plan(apply=left, delete=strangers, status=status)
    status = ablation_status(ablation, study, known, Outlook("Running"), now, trained)
    applied = tuple(trial_manifest(ablation.identity, step) for step in chosen)
    return Plan(apply=applied, delete=strangers, status=status, requeue_after=LOOK_SECONDS)


def _ending(judged: bool, short: bool) -> Outlook:
    """Return what is said at the end: whether any variant was judged, and whether the budget was too small for all."""
    if not judged:
        return Outlook("Failed", failed=("AllTrialsFailed", "no training came to its first rung: see trials"))
    if short:
        words = "the budget is spent before all was found: write a larger one to go on"
        return Outlook("Failed", failed=("BudgetSpent", words))
    return Outlook("Succeeded")


def _is_under_way(step: Step, trial: Trial | None) -> bool:
    """Whether a training is on its way to where it may go: it was told so, and has not come there."""
    if trial is None or trial.failed:
        return False
    told = step.run.total if trial.until is None else trial.until
    return told >= min(step.tokens, step.run.total)


def _trial_status(ablation: Ablation, seen: AblationSeen, run: Run) -> TrialStatus:
    """Return a training's status: what was written of it, and where it rests now."""
    before = next((each for each in ablation.status.trials or () if each.name == run.name), None)
    points = list((before.points if before else None) or _reused(ablation, seen, run))
    trial = seen.trials.get(run.name)
    if trial is not None and trial.rests and trial.tokens > (points[-1].tokens if points else 0):
        value = objective(ablation.spec.objective, trial.figures)
        points.append(PointStatus(tokens=trial.tokens, objective=f"{value:.6f}"))
    failed = trial.failed if trial else (before.message or "" if before else "")
    return TrialStatus(
        name=run.name,
        variant=run.variant,
        seed=run.seed,
        state=_state(run, trial, points, failed),
        tokens=points[-1].tokens if points else 0,
        points=points or None,
        message=failed or None,
    )


def _state(run: Run, trial: Trial | None, points: list[PointStatus], failed: str) -> TrialState:
    if failed:
        return "Failed"
    if points and points[-1].tokens >= run.total:
        return "Done"
    if trial is None:
        return "Resting" if points else "Waiting"
    return "Resting" if trial.rests else "Running"


def _reused(ablation: Ablation, seen: AblationSeen, run: Run) -> list[PointStatus]:
    """Return what an earlier ablation has found of the same training, if that is done: others can't go on here."""
    if ablation.spec.reuse is None:
        return []
    name = ablation.spec.reuse + run.name.removeprefix(ablation.identity.name)
    found = next((each for each in seen.earlier.trials or () if each.name == name), None)
    return list(found.points or ()) if found and found.state == "Done" else []


def _points(trials: Mapping[str, TrialStatus]) -> dict[str, list[int]]:
    return {name: [point.tokens for point in each.points or ()] for name, each in trials.items() if each.points}


def _strangers(ablation: Ablation, seen: AblationSeen, known: Mapping[str, TrialStatus]) -> tuple[Delete, ...]:
    """Return the trainings that an edit of the ablation has left without a place in it."""
    return tuple(
        Delete(TRAINING, ablation.identity.namespace, trial.name, trial.uid)
        for trial in seen.trials.values()
        if trial.name not in known and not trial.deleting
    )
