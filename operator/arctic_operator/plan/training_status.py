"""What a training's status says: the state, the conditions, and the progress that its workers report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from arctic_api.common import Condition, parse_tokens
from arctic_api.training import (
    ArcticTrainingSpec,
    ArcticTrainingStatus,
    Export,
    LastCheckpoint,
    SourceStatus,
    StageStatus,
)
from arctic_api.world import Report, SourceReport
from arctic_operator.live import Live, Phase, SourceSeen, TrainingObservation
from arctic_operator.observed import INVALID_SPEC, Job, Pod, Training, TrainingSeen, Trouble, format_time, number_of
from arctic_operator.plan.conditions import Conditions, find, is_true, refusal_of, trouble_of
from arctic_operator.plan.endings import LESS_MEMORY, first_report
from arctic_operator.plan.stage_evaluations import found_beside
from arctic_operator.plan.training_control import answered_request
from arctic_operator.plan.training_figures import figures
from arctic_operator.plan.training_forecast import cost, planned, wanted_stages
from arctic_operator.plan.words import NO_KUEUE

PROGRESS_FIELDS = frozenset(
    {
        *("step", "tokens", "loss", "lossBySource", "learningRate", "gradientNorm", "skippedUpdates", "timeShares"),
        *("recomputesActivations", "routing", "tokensPerSecond", "mfu", "exposedCommunication", "gpuHours", "costUSD"),
        *("eta", "stages", "sources", "lastCheckpoint", "plannedMemory"),
    }
)
"""What changes all the time: written less often than a change of state."""
ETA_GRAIN = timedelta(seconds=30)


@dataclass(frozen=True)
class Outlook:
    """What was decided about the training, for its state and conditions."""

    state: str
    waiting: str = ""
    """Why there is no world at the moment."""
    succeeded: str = ""
    failed: tuple[str, str] | None = None
    """Reason and message of the end."""
    correctable: bool = False
    """Whether an edit of the specification goes on from that end."""

    @classmethod
    def kept(cls, status: ArcticTrainingStatus) -> "Outlook":
        """Return the outlook of a training that has ended, from its status."""
        failed, done = find(status.conditions, "Failed"), find(status.conditions, "Succeeded")
        if done and done.status == "True":
            return cls("Succeeded", succeeded=done.message or done.reason)
        assert failed is not None
        return cls("Failed", failed=(failed.reason, failed.message))


def is_finished(status: ArcticTrainingStatus) -> bool:
    """Whether a training has ended for good: a specification that can't be read, or was refused, may be corrected."""
    ended = is_true(status.conditions, "Succeeded") or is_true(status.conditions, "Failed")
    return ended and status.completion_time is not None


def training_status(
    training: Training,
    seen: TrainingSeen,
    attempt: int,
    pods: Sequence[Pod],
    gpus: float,
    outlook: Outlook,
    now: datetime,
) -> dict[str, Any]:
    """Return the whole status. `pods` are those of the newest attempt, and each has so many GPUs."""
    before, spec = training.status, training.spec
    observation = observation_of(seen.live, training.identity.uid, attempt)
    report = first_report(pods)
    ended = bool(outlook.succeeded or outlook.failed)
    lack = seen.lack if outlook.state == "WaitingForTraining" else None
    job = next((job for job in seen.jobs if job.attempt == attempt), None)
    refusal = _refusal(job, seen.refusals) if job and len(pods) < spec.parallelism.nodes else None
    trouble = None if ended else lack or refusal or trouble_of(pods, LESS_MEMORY)
    running = len(pods) == spec.parallelism.nodes and all(pod.phase == "Running" for pod in pods)
    ready = running and all(pod.ready_since for pod in pods)
    unheard = "Running" if ready else "Finishing" if any(pod.phase == "Succeeded" for pod in pods) else "Starting"
    state = _state(outlook, unheard, trouble, observation if running else None)
    stages = _stages(spec, before, report, observation)
    checkpoint = _checkpoint(before, report, observation)
    hours = gpu_hours(training, gpus, job, pods, now)
    status = ArcticTrainingStatus(
        state=state,
        observed_generation=training.generation,
        stage=observation.stage if observation and observation.stage else before.stage,
        **planned(spec, before, observation, gpus),
        stages=stages,
        sources=_sources(before, report, observation),
        attempt=attempt or None,
        restarts=before.restarts or 0,
        attempts=before.attempts,
        start_time=before.start_time or (format_time(now) if running else None),
        completion_time=before.completion_time or (format_time(now) if ended and not outlook.correctable else None),
        last_checkpoint=checkpoint,
        checkpoint_request=answered_request(training, seen.answer),
        export=Export(uri=report.export_uri) if report and report.export_uri else before.export,
        evaluation=_evaluation(training, seen, report),
        gpu_hours=f"{hours:.3f}" if hours else None,
        cost_usd=cost(spec, hours),
        weights=(seen.base or before.weights) if spec.model.from_ else None,
        conditions=_conditions(training, seen.live, pods, outlook, state, trouble, checkpoint, running, now),
        **_progress(spec, before, report, observation if running and not ended else None, now),
    )
    return status.wire()


def _refusal(job: Job, told: Mapping[str, str]) -> Trouble | None:
    """Return what keeps a Job from its pods: waiting in a queue is no trouble, unless nobody sees to the queue."""
    if not job.suspended:
        return refusal_of(job.name, told)
    return Trouble("NoKueue", NO_KUEUE) if told.get(job.name) == NO_KUEUE else None


def observation_of(live: Live | None, uid: str, attempt: int) -> TrainingObservation | None:
    """Return what rank 0 says, unless it is of another world."""
    seen = live.observation if live else None
    matches = isinstance(seen, TrainingObservation) and seen.uid == uid and seen.epoch == attempt
    return seen if matches and isinstance(seen, TrainingObservation) else None


def _state(outlook: Outlook, unheard: str, trouble: Trouble | None, seen: TrainingObservation | None) -> str:
    """Return the one word. While no worker has been heard, as after a restart of ours, the pods say how it stands."""
    if outlook.state != "Running":
        return outlook.state
    if trouble:
        return trouble.reason
    if seen is None:
        return unheard
    named = {Phase.STARTING: "Starting", Phase.PAUSED: "Paused", Phase.EXPORTING: "Exporting", Phase.DONE: "Finishing"}
    return named.get(seen.phase, "Running")


def _progress(
    spec: ArcticTrainingSpec,
    before: ArcticTrainingStatus,
    report: Report | None,
    seen: TrainingObservation | None,
    now: datetime,
) -> dict[str, Any]:
    """Return step, tokens, loss and rates. Rates are of this moment: without a running world there are none."""
    step, tokens, loss = before.step, before.tokens, before.loss
    if report and report.step:
        step, tokens = report.step, report.tokens
        loss = f"{report.loss:.4f}" if report.loss is not None else loss
    kept = {"step": step, "tokens": tokens, "loss": loss, "skipped_updates": before.skipped_updates}
    if seen is None:
        return kept
    if seen.step:
        step, tokens = seen.step, seen.tokens
    if seen.loss is not None:
        loss = f"{seen.loss:.4f}"
    rate = seen.tokens_per_second
    left = sum(parse_tokens(stage.tokens) for stage in wanted_stages(spec)) - (tokens or 0)
    eta = now + timedelta(seconds=left / rate) if rate and left > 0 and left / rate < 10**8 else None
    return {
        "step": step,
        "tokens": tokens,
        "loss": loss,
        **figures(seen),
        "tokens_per_second": round(rate) if rate is not None else None,
        "mfu": f"{seen.mfu:.3f}" if seen.mfu else None,
        "eta": format_time(_rounded(eta)) if eta else None,
    }


def _rounded(moment: datetime) -> datetime:
    grain = ETA_GRAIN.total_seconds()
    return datetime.fromtimestamp(round(moment.timestamp() / grain) * grain, moment.tzinfo)


def _stages(
    spec: ArcticTrainingSpec, before: ArcticTrainingStatus, report: Report | None, seen: TrainingObservation | None
) -> list[StageStatus]:
    """Return a line for each stage of the curriculum, from the newest word on it."""
    known = {stage.name: stage for stage in before.stages or ()}
    for stage in report.stages if report else ():
        known[stage.name] = _stage(
            stage.name,
            stage.tokens,
            (stage.start_time, stage.completion_time),
            stage.checkpoint,
            (stage.initial_validation_loss, stage.validation_loss),
        )
    for line in seen.stages if seen else ():
        times = tuple(format_time(time) if time else None for time in (line.started, line.completed))
        losses = (line.initial_validation_loss, line.validation_loss)
        known[line.name] = _stage(line.name, line.tokens, times, line.checkpoint or None, losses)
    budgets = {stage.name: parse_tokens(stage.tokens) for stage in spec.curriculum.stages}
    empty = StageStatus(name="-", budget=0)
    return [
        known.get(name, empty).model_copy(update={"name": name, "budget": budget}) for name, budget in budgets.items()
    ]


def _stage(
    name: str,
    tokens: int,
    times: Sequence[str | None],
    checkpoint: str | None,
    losses: Sequence[float | None],
) -> StageStatus:
    """Return a stage's line; times and held-out losses are those of its start and its end."""
    initial, final = (f"{loss:.4f}" if loss is not None else None for loss in losses)
    return StageStatus(
        name=name,
        tokens=tokens,
        budget=0,
        start_time=times[0],
        completion_time=times[1],
        checkpoint=checkpoint,
        initial_validation_loss=initial,
        validation_loss=final,
    )


def _sources(
    before: ArcticTrainingStatus, report: Report | None, seen: TrainingObservation | None
) -> list[SourceStatus] | None:
    """Return a line for each source, from the newest word: the observation's, a report's, the one before."""
    told: Sequence[SourceSeen | SourceReport] = (seen.sources if seen else ()) or (report.sources if report else ())
    return [_source(source) for source in told] or before.sources


def _source(source: SourceSeen | SourceReport) -> SourceStatus:
    return SourceStatus(
        name=source.name,
        documents=source.documents,
        skipped=source.skipped,
        tokens=source.tokens,
        epochs=f"{source.epochs:.3f}",
        planned_epochs=f"{source.planned_epochs:.3f}",
        unused_splits=list(source.unused_splits) or None,
    )


def _checkpoint(
    before: ArcticTrainingStatus, report: Report | None, seen: TrainingObservation | None
) -> LastCheckpoint | None:
    latest = before.last_checkpoint
    if report and report.checkpoint:
        latest = LastCheckpoint.model_validate(report.checkpoint.wire())
    if seen and seen.last_checkpoint and seen.last_checkpoint.time:
        told = seen.last_checkpoint
        if latest is None or told.step >= latest.step:
            assert told.time is not None
            latest = LastCheckpoint(step=told.step, tokens=told.tokens, uri=told.uri, time=format_time(told.time))
    return latest


def _evaluation(training: Training, seen: TrainingSeen, report: Report | None) -> dict[str, str] | None:
    """Return the latest figures: what the workers report last, and what was found beside them."""
    told = training.status.evaluation or {}
    if report and report.evaluation is not None:  # empty where no loss was a finite number
        told = {name: f"{value:.4f}" for name, value in report.evaluation.items()}
    return told | dict(found_beside(training, seen.judged)) or None


def gpu_hours(training: Training, gpus: float, job: Job | None, pods: Sequence[Pod], now: datetime) -> float:
    """Return the GPU hours of all attempts: what the newest Job was told of the earlier ones, and its own pods'.

    `gpus` is the number of GPUs of one pod. A pod without any counts as one: it has its price too.
    """
    known = number_of(training.status.gpu_hours)
    seconds = sum(((pod.finished or now) - pod.started).total_seconds() for pod in pods if pod.started)
    return max(known, (job.gpu_hours_before if job else 0.0) + seconds * (gpus or 1) / 3600)


def _conditions(
    training: Training,
    live: Live | None,
    pods: Sequence[Pod],
    outlook: Outlook,
    state: str,
    trouble: Trouble | None,
    checkpoint: LastCheckpoint | None,
    running: bool,
    now: datetime,
) -> list[Condition]:
    """Return all conditions; each says what holds now, whatever the others say."""
    spec = training.spec
    conditions = Conditions(training.status.conditions, training.generation, now)
    suspended = outlook.state == "Suspended"
    conditions.set("Suspended", suspended, "Suspended" if suspended else "NotSuspended")
    _scheduled(conditions, pods, spec.parallelism.nodes, state)
    _connected(conditions, live if running else None, state)
    if checkpoint:
        conditions.set("CheckpointReady", True, "Committed", f"step {checkpoint.step}: {checkpoint.uri}")
    else:
        conditions.set("CheckpointReady", False, "NoCheckpoint", "no checkpoint is committed yet")
    _degraded(conditions, trouble, outlook)
    _set_end(conditions, outlook, state)
    return conditions.all()


def _set_end(conditions: Conditions, outlook: Outlook, state: str) -> None:
    succeeded, failed = outlook.succeeded, outlook.failed
    conditions.set("Succeeded", bool(succeeded), "Succeeded" if succeeded else state, succeeded)
    conditions.set("Failed", bool(failed), *(failed or ("NotFailed", "")))


def _scheduled(conditions: Conditions, pods: Sequence[Pod], nodes: int, state: str) -> None:
    placed = sum(1 for pod in pods if pod.node)
    if placed == nodes:
        conditions.set("PodsScheduled", True, "Scheduled", f"{nodes} of {nodes} pods have a node")
    else:
        refusal = next((pod.unschedulable for pod in pods if pod.unschedulable), "")
        message = f"{placed} of {nodes} pods have a node{': ' if refusal else ''}{refusal}"
        conditions.set("PodsScheduled", False, "Unschedulable" if refusal else state, message)


def _connected(conditions: Conditions, live: Live | None, state: str) -> None:
    if live and live.connected:
        conditions.set("WorkersConnected", True, "Connected")
    else:
        conditions.set("WorkersConnected", False, "NotConnected" if live else state, live.error if live else "")


def _degraded(conditions: Conditions, trouble: Trouble | None, outlook: Outlook) -> None:
    if trouble:
        conditions.set("Degraded", True, trouble.reason, trouble.message)
    elif outlook.state == "Restarting" and outlook.waiting:
        conditions.set("Degraded", True, "Restarting", outlook.waiting)
    elif outlook.state in ("WaitingForTraining", "WaitingForNodes", "Queued"):
        conditions.set("Degraded", False, outlook.state, outlook.waiting)
    else:
        conditions.set("Degraded", False, "AsExpected")


def invalid_status(status: ArcticTrainingStatus, message: str, generation: int, now: datetime) -> dict[str, Any]:
    """Return the status of a training whose specification can't be carried out.

    A running world is left alone, and an end stays what it was.
    """
    conditions = Conditions(status.conditions, generation, now)
    for kind in ("Suspended", "PodsScheduled", "WorkersConnected", "CheckpointReady"):
        conditions.set(kind, is_true(status.conditions, kind), INVALID_SPEC)
    conditions.set("Degraded", True, INVALID_SPEC, message)
    if is_finished(status):
        _set_end(conditions, Outlook.kept(status), INVALID_SPEC)
    else:
        conditions.set("Succeeded", False, INVALID_SPEC)
        conditions.set("Failed", not status.attempt, INVALID_SPEC, message)
    after = status.model_copy(
        update={"state": INVALID_SPEC, "observed_generation": generation, "conditions": conditions.all()}
    )
    return after.wire()
