"""An evaluation's status. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from arctic_api.common import BaseWeights
from arctic_api.evaluation import ArcticEvaluationStatus, FigureStatus, ScoreStatus, SuiteStatus
from arctic_api.world import EvaluationReport, FigureReport, SuiteReport
from arctic_operator.evaluations import Evaluation, EvaluationSeen
from arctic_operator.live import EvaluationObservation
from arctic_operator.manifests.evaluation import results_folder
from arctic_operator.observed import INVALID_SPEC, Trouble, format_time
from arctic_operator.plan.conditions import Conditions, find, is_true

PROGRESS_FIELDS = frozenset({"suites"})
UNFINISHED = ("Waiting", "Running")


@dataclass(frozen=True)
class Outlook:
    """What is to be said of an evaluation."""

    state: str
    waiting: str = ""
    trouble: Trouble | None = None
    succeeded: str = ""
    failed: tuple[str, str] | None = None
    """Reason and sentence."""
    report: EvaluationReport | None = None
    """The last word of the pod that ended it."""
    weights: BaseWeights | None = None
    """What it begins with."""


def is_finished(status: ArcticEvaluationStatus, generation: int) -> bool:
    """Whether it has ended; one that failed goes on once it is edited.

    One that an operator could not read may be read by the next release, without an edit.
    """
    failed = find(status.conditions, "Failed")
    if failed is None or failed.status != "True" or failed.reason == INVALID_SPEC:
        return is_true(status.conditions, "Succeeded")
    return failed.observed_generation == generation


def kept_status(status: ArcticEvaluationStatus, generation: int, now: datetime) -> dict[str, Any]:
    """Return the status of an evaluation that has ended, whatever an operator has said since that could not read it."""
    fields: dict[str, Any] = {"observed_generation": generation}
    if status.state == INVALID_SPEC:
        conditions = Conditions(status.conditions, generation, now)
        conditions.set("Degraded", False, "AsExpected")
        conditions.set("Succeeded", True, "Succeeded")
        conditions.set("Failed", False, "NotFailed")
        fields |= {"state": "Succeeded", "conditions": conditions.all()}
    return status.model_copy(update=fields).wire()


def evaluation_status(evaluation: Evaluation, seen: EvaluationSeen, outlook: Outlook, now: datetime) -> dict[str, Any]:
    """Return the whole status."""
    before = evaluation.status
    conditions = Conditions(before.conditions, evaluation.generation, now)
    if outlook.trouble is not None and not outlook.failed:
        conditions.set("Degraded", True, outlook.trouble.reason, outlook.trouble.message)
    else:
        conditions.set("Degraded", False, outlook.state if outlook.waiting else "AsExpected", outlook.waiting)
    conditions.set("Succeeded", bool(outlook.succeeded), outlook.state, outlook.succeeded)
    reason, message = outlook.failed or ("NotFailed", "")
    conditions.set("Failed", outlook.failed is not None, reason, message)
    ended = bool(outlook.succeeded or outlook.failed)
    score = outlook.report.enterprise_intelligence if outlook.report else None
    begun = ended or outlook.state in ("Starting", "Running", "Restarting")
    return ArcticEvaluationStatus(
        state=outlook.state,
        observed_generation=evaluation.generation,
        conditions=conditions.all(),
        suites=_suites(evaluation, seen, outlook.report, ended=ended),
        enterprise_intelligence=ScoreStatus(value=_digits(score.value), interval=_interval(score)) if score else None,
        folder=results_folder(evaluation),
        start_time=before.start_time or (format_time(now) if begun else None),
        completion_time=format_time(now) if ended else None,
        weights=outlook.weights or before.weights,
    ).wire()


def _suites(
    evaluation: Evaluation, seen: EvaluationSeen, report: EvaluationReport | None, *, ended: bool
) -> list[SuiteStatus]:
    """Return a line for each suite that was asked for, from the newest word on it."""
    told = {suite.name: _suite(suite) for suite in (report.suites if report else _live(evaluation, seen))}
    before = {suite.name: suite for suite in evaluation.status.suites or ()}
    lines = []
    for suite in evaluation.spec.suites:
        line = told.get(suite.name) or before.get(suite.name) or SuiteStatus(name=suite.name, state="Waiting")
        if ended and line.state in UNFINISHED:
            line = line.model_copy(update={"state": "NotRun", "message": "the evaluation ended before it did"})
        lines.append(line)
    return lines


def _live(evaluation: Evaluation, seen: EvaluationSeen) -> Sequence[SuiteReport]:
    observation = seen.live.observation if seen.live else None
    of_this = isinstance(observation, EvaluationObservation) and observation.uid == evaluation.identity.uid
    return observation.suites if of_this and isinstance(observation, EvaluationObservation) else ()


def _suite(suite: SuiteReport) -> SuiteStatus:
    figures = [
        FigureStatus(name=figure.name, value=_digits(figure.value), interval=_interval(figure))
        for figure in suite.figures
    ]
    return SuiteStatus(
        name=suite.name,
        state=suite.state,
        answered=suite.answered,
        judged=suite.judged,
        planned=suite.planned,
        figures=figures or None,
        message=suite.message or None,
    )


def _digits(value: float) -> str:
    return f"{value:.4f}"


def _interval(figure: FigureReport) -> str:
    return f"{_digits(figure.low)} to {_digits(figure.high)}"


def invalid_status(status: ArcticEvaluationStatus, message: str, generation: int, now: datetime) -> dict[str, Any]:
    """Return the status of an evaluation whose specification can't be carried out; its pod is left alone."""
    conditions = Conditions(status.conditions, generation, now)
    conditions.set("Degraded", True, INVALID_SPEC, message)
    conditions.set("Succeeded", is_true(status.conditions, "Succeeded"), INVALID_SPEC)
    conditions.set("Failed", not is_true(status.conditions, "Succeeded"), INVALID_SPEC, message)
    fields = {"state": INVALID_SPEC, "observed_generation": generation, "conditions": conditions.all()}
    return status.model_copy(update=fields).wire()
