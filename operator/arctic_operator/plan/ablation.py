"""What an ablation's trainings should be now. Pure.

What a training has come to is written into the status before anything follows from it: a training says only where it is
now, and once it goes on from a rung the status alone knows what it was like there.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from arctic_ablation.ranking import objective, why_unjudged
from arctic_ablation.study import Found, Run, Step, VariantStudy, affordable
from arctic_ablation.variants import VariantError
from arctic_ablation.winner import best_manifest
from arctic_api.ablation import ArcticAblationSpec, PointStatus, SwarmPart, TrialState, TrialStatus
from arctic_api.common import parse_tokens
from arctic_api.evaluation import KIND as EVALUATION
from arctic_api.training import KIND as TRAINING
from arctic_operator.manifests.ablation import best as best_config
from arctic_operator.manifests.ablation import judgement
from arctic_operator.manifests.ablation import trial as trial_manifest
from arctic_operator.manifests.common import Manifest, judgement_name
from arctic_operator.observed import Trouble
from arctic_operator.plan.ablation_pod import Task, is_of_swarm, plan_task, told_of
from arctic_operator.plan.ablation_status import Outlook, ablation_status, found_of, is_finished, legible
from arctic_operator.plan.actions import Delete, Plan, sooner
from arctic_operator.settings import Settings
from arctic_operator.trials import Ablation, AblationSeen, Judgement, Trial

if TYPE_CHECKING:
    from arctic_ablation.swarm.study import SwarmStudy  # which needs numpy

JUDGING: TrialState = "Judging"
LONGEST_WORD = 256
"""Letters of what is said of a training that has failed: a thousand may have, and its own status says all."""
LOOK_SECONDS = 5.0
"""Trainings tell by their status; this is for what no event tells."""
NOTHING_FORETOLD = (
    "NothingForetold",
    "the pod has foretold nothing of these stages and sources: let operator and workers be of the same release",
)


def plan_ablation(ablation: Ablation, seen: AblationSeen, settings: Settings, now: datetime) -> Plan:
    """Return what to do for an ablation, and its status."""
    if ablation.deleting:
        return Plan()
    if is_finished(ablation.status, ablation.generation):
        return Plan(status=ablation.status.wire())
    case = _Case(ablation, seen, settings, now)
    try:
        known = case.known()
    except VariantError as error:
        outlook = Outlook("Failed", failed=(type(error).__name__, str(error)))
        return Plan(status=ablation_status(ablation, None, {}, outlook, now))
    return _plan(case, known)


@dataclass(frozen=True)
class _Case:
    ablation: Ablation
    seen: AblationSeen
    settings: Settings
    now: datetime

    @property
    def study(self) -> "VariantStudy | SwarmStudy":
        return self.ablation.study

    def known(self) -> dict[str, TrialStatus]:
        """Return the status of each training that is known by now: what a swarm runs next hangs on what is found."""
        spec = self.ablation.spec
        found = {each.name: found_of(spec, each) for each in self.ablation.status.trials or ()}
        return {run.name: _trial_status(self.ablation, self.seen, run) for run in self.study.all_runs(found)}

    def status(self, known: Mapping[str, TrialStatus], outlook: Outlook) -> dict[str, Any]:
        """Return the whole status; what was foretold before stays, if the outlook says nothing else."""
        outlook = outlook if outlook.foretold else replace(outlook, foretold=told_of(self.ablation))
        return ablation_status(self.ablation, self.study, known, outlook, self.now, self.seen.trials)


def _plan(case: _Case, known: Mapping[str, TrialStatus]) -> Plan:
    ablation, seen, study = case.ablation, case.seen, case.study
    found = {name: found_of(ablation.spec, status) for name, status in known.items()}
    part = None if isinstance(study, VariantStudy) else study.due(found)
    # What the second half of a swarm is, is not known before the first has foretold.
    strangers = () if part else _strangers(ablation, seen, known)
    if _points(known) != _points({each.name: each for each in ablation.status.trials or ()}):
        return Plan(delete=strangers, status=case.status(known, Outlook("Running")), requeue_after=0.1)
    if part is not None:
        return _foretell(case, part, known)
    steps = {step.run.name: step for step in study.steps(found)}
    running = [step for name, step in steps.items() if _is_under_way(step, seen.trials.get(name))]
    free = max(0, ablation.spec.parallelism - len(running))
    wanted = [step for step in steps.values() if step not in running][:free]
    budget = _budget(ablation.spec, seen)
    spent = sum(each.tokens for each in found.values()) + sum(step.cost(found) for step in running)
    chosen = affordable(wanted, found, budget, spent)
    if not running and not chosen:
        return _end(case, known, found, strangers, short=bool(wanted))
    applied = tuple(trial_manifest(ablation.identity, step) for step in chosen) + _judgements_due(case, running, known)
    status = case.status(known, Outlook("Running"))
    return Plan(apply=applied, delete=strangers + _jobs(case), status=status, requeue_after=LOOK_SECONDS)


def _budget(spec: ArcticAblationSpec, seen: AblationSeen) -> int | None:
    """Return the tokens that all trainings may take, None for any; GPU hours buy what they have bought so far."""
    budgets = [] if spec.budget is None else [parse_tokens(spec.budget)]
    hours = sum(trial.gpu_hours for trial in seen.trials.values())
    tokens = sum(trial.tokens for trial in seen.trials.values())
    if spec.budget_gpu_hours is not None and hours and tokens:
        budgets.append(math.floor(spec.budget_gpu_hours / hours * tokens))
    return min(budgets, default=None)


def _foretell(case: _Case, part: SwarmPart, known: Mapping[str, TrialStatus]) -> Plan:
    task = plan_task(case.ablation, case.seen, part, known, case.settings, case.now)
    if task.report is not None:
        said = task.report.foretold
        if said is None or not is_of_swarm(case.ablation, said):
            return Plan(status=case.status(known, Outlook("Failed", failed=NOTHING_FORETOLD)))
        told = [*told_of(case.ablation), said]
        return Plan(status=case.status(known, Outlook("Running", foretold=told)), requeue_after=0.1)
    if task.failed is not None:
        return Plan(status=case.status(known, Outlook("Failed", failed=task.failed)))
    return _await(case, task, known, (), "Foretelling")


def _await(
    case: _Case, task: Task, known: Mapping[str, TrialStatus], strangers: tuple[Delete, ...], state: str
) -> Plan:
    return Plan(
        apply=task.apply,
        create=task.create,
        delete=strangers + task.delete,
        status=case.status(known, Outlook(state, trouble=task.trouble)),
        short=task.short,
        requeue_after=sooner(LOOK_SECONDS, task.requeue_after),
        needs_fresh=bool(task.create),
    )


def _end(
    case: _Case,
    known: Mapping[str, TrialStatus],
    found: Mapping[str, Found],
    strangers: tuple[Delete, ...],
    *,
    short: bool,
) -> Plan:
    """Nothing runs and nothing may: the report is written, and what was found is told. `short` is whether of budget."""
    ablation = case.ablation
    best = best_manifest(ablation.identity.name, ablation.spec, case.study, found)
    if best is None:
        return Plan(delete=strangers + _jobs(case), status=case.status(known, _ending(judged=False, short=short)))
    task = plan_task(ablation, case.seen, "report", known, case.settings, case.now, whole=not short)
    if task.report is None and task.failed is None:
        return _await(case, task, known, strangers, "Reporting")
    trouble = Trouble("NoReport", task.failed[1]) if task.failed else None
    ending = replace(_ending(judged=True, short=short), trouble=trouble, reported=trouble is None)
    left = (best_config(ablation.identity, best),)
    return Plan(apply=left, delete=strangers + _jobs(case), status=case.status(known, ending))


def _jobs(case: _Case) -> tuple[Delete, ...]:
    """Return the Jobs that have foretold: what they said is in the status."""
    namespace = case.ablation.identity.namespace
    return tuple(Delete("Job", namespace, job.name, job.uid) for job in case.seen.jobs if not job.deleting)


def _ending(*, judged: bool, short: bool) -> Outlook:
    """Return what is said at the end: whether any variant was judged, and whether the budget was too small for all."""
    if not judged:
        return Outlook("Failed", failed=("AllTrialsFailed", "no training came to its first rung: see trials"))
    if short:
        words = "the budget is spent before all was found: write a larger one to go on"
        return Outlook("Failed", failed=("BudgetSpent", words))
    return Outlook("Succeeded")


def _judgements_due(case: _Case, running: Iterable[Step], known: Mapping[str, TrialStatus]) -> tuple[Manifest, ...]:
    """Return the evaluations that trainings at rest wait for, and that are not there yet."""
    at_rest = [step.run for step in running if known[step.run.name].state == JUDGING]
    trials = [(run, case.seen.trials[run.name]) for run in at_rest]
    due = [judgement(case.ablation, run, trial) for run, trial in trials if trial.checkpoint]
    return tuple(made for made in due if made["metadata"]["name"] not in case.seen.judgements)


def _judged(ablation: Ablation, seen: AblationSeen, trial: Trial) -> tuple[PointStatus | None, str]:
    """Return what a training at rest is worth, once that is known, and why it never will be."""
    wanted, name = ablation.spec.objective, None
    figures = trial.figures
    if wanted.suites is not None:
        name = judgement_name(ablation.identity, trial.name, trial.tokens)
        told = seen.judgements.get(name)
        if told is None or not told.ended:
            return None, ""
        if told.failed:
            return None, f"its evaluation {name}: {told.failed}"
        figures = told.figures
    elif trial.odd:
        return None, f"its status.evaluation: {trial.odd}"
    if wrong := why_unjudged(wanted, figures):
        return None, wrong
    return PointStatus(tokens=trial.tokens, objective=f"{objective(wanted, figures):.6f}", evaluation=name), ""


def _is_under_way(step: Step, trial: Trial | None) -> bool:
    """Whether a training is on its way to where it may go: it was told so, and has not come there."""
    if trial is None or trial.failed:
        return False
    told = step.run.total if trial.until is None else trial.until
    return told >= min(step.tokens, step.run.total)


def _trial_status(ablation: Ablation, seen: AblationSeen, run: Run) -> TrialStatus:
    """Return a training's status: what was written of it, and where it rests now."""
    before = next((each for each in ablation.status.trials or () if each.name == run.name), None)
    points = legible(ablation.spec, (before.points if before else None) or _reused(ablation, seen, run))
    trial = seen.trials.get(run.name)
    failed = trial.failed if trial else (before.message or "" if before else "")
    if trial is not None and trial.rests and trial.tokens > (points[-1].tokens if points else 0):
        found, wrong = _judged(ablation, seen, trial)
        points += [found] if found else []
        failed = failed or wrong
    return TrialStatus(
        name=run.name,
        variant=run.variant,
        seed=run.seed,
        state=_state(run, trial, points, failed),
        tokens=points[-1].tokens if points else 0,
        points=points or None,
        message=failed[:LONGEST_WORD] or None,
    )


def _state(run: Run, trial: Trial | None, points: list[PointStatus], failed: str) -> TrialState:
    if failed:
        return "Failed"
    if points and points[-1].tokens >= run.total:
        return "Done"
    if trial is None:
        return "Resting" if points else "Waiting"
    if trial.rests:
        return "Resting" if points and points[-1].tokens >= trial.tokens else JUDGING
    return "Running"


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
    """Return the trainings that an edit of the ablation has left without a place in it, and their evaluations."""
    kept = {
        judgement_name(ablation.identity, name, tokens)
        for name, status in known.items()
        for tokens in (*_points({name: status}).get(name, ()), _tokens(seen.trials.get(name)))
    }
    strangers: list[tuple[str, Trial | Judgement]]
    strangers = [(TRAINING, trial) for trial in seen.trials.values() if trial.name not in known]
    strangers += [(EVALUATION, each) for each in seen.judgements.values() if each.name not in kept]
    namespace = ablation.identity.namespace
    return tuple(Delete(kind, namespace, each.name, each.uid) for kind, each in strangers if not each.deleting)


def _tokens(trial: Trial | None) -> int:
    return trial.tokens if trial else 0
