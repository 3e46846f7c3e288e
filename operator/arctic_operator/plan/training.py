"""What should become of a training: one world at a time, an attempt after the other, until it is done or given up.

Memory is in two places only: the attempts' numbers in names and labels, and the record of ended attempts in the status.
An ending is written down before anything is done about it, so that it counts once however often it is seen.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from arctic_api.common import parse_duration, parse_tokens
from arctic_api.training import ArcticTrainingStatus, AttemptStatus
from arctic_api.world import SUSPENDED, Ports
from arctic_operator.manifests.training import attempt_job, attempt_services
from arctic_operator.observed import (
    GENERATION_ANNOTATION,
    REVISION_ANNOTATION,
    Job,
    Manifest,
    Pod,
    Training,
    TrainingSeen,
    attempt_of,
    format_time,
    parse_time,
)
from arctic_operator.plan.actions import Command, Delete, Follow, Mark, Plan, sooner
from arctic_operator.plan.conditions import (
    PODS_AFTER,
    lacks_pods,
    unreachable,
    until_unreachable,
    waiting_for,
)
from arctic_operator.plan.endings import (
    EXPLAINED_WITHIN,
    NODE_LOST,
    POD_LOST,
    Ending,
    first_report,
    is_unexplained,
    judge,
)
from arctic_operator.plan.placement import LOOK_SECONDS, gives_way, goes_after
from arctic_operator.plan.settling import begins, settles
from arctic_operator.plan.stage_evaluations import evaluations_beside, is_evaluated
from arctic_operator.plan.training_control import commands
from arctic_operator.plan.training_status import (
    Outlook,
    gpu_hours,
    is_finished,
    observation_of,
    training_status,
)
from arctic_operator.rivals import GAVE_WAY, gave_way
from arctic_operator.settings import Settings

KEPT_RECORDS = 5
SHORT_LIFE = timedelta(seconds=10)
"""An interrupted attempt that lived no longer is followed by the next one only after the first backoff."""
LOOK_AGAIN_SECONDS = 1800.0
"""When a world in which nothing happens is looked at again: its certificate may be near its end."""
SURVIVOR_SECONDS = 1
"""What the pods of a broken world get to end: with a rank gone they can write nothing any more."""
LINGER_SECONDS = 5
"""What containers beside a worker that has ended get to end: time to send the last lines of a log."""


@dataclass(frozen=True)
class World:
    """The newest attempt, and what is left of all."""

    attempt: int
    """0 before the first."""
    job: Job | None
    pods: tuple[Pod, ...]
    alive: tuple[Pod, ...]
    """Pods of any attempt that run, or may, on nodes that answer."""
    record: AttemptStatus | None
    """How it ended, if that is written down."""

    @classmethod
    def of(cls, training: Training, seen: TrainingSeen, now: datetime) -> "World":
        """Find it: what exists is newer than what is written down."""
        numbers = [job.attempt for job in seen.jobs] + [pod.attempt or 0 for pod in seen.pods]
        attempt = max([training.status.attempt or 0, *numbers])
        return cls(
            attempt=attempt,
            job=next((job for job in seen.jobs if job.attempt == attempt), None),
            pods=tuple(pod for pod in seen.pods if pod.attempt == attempt),
            alive=tuple(pod for pod in seen.pods if not pod.ended and not unreachable(pod, seen.nodes, now)),
            record=next((r for r in training.status.attempts or () if r.number == attempt), None),
        )


@dataclass(frozen=True)
class _Case:
    training: Training
    seen: TrainingSeen
    settings: Settings
    now: datetime
    world: World

    def status(self, outlook: Outlook, before: ArcticTrainingStatus | None = None) -> dict[str, Any]:
        training = replace(self.training, status=before) if before else self.training
        return training_status(training, self.seen, self.world.attempt, self.world.pods, self.gpus, outlook, self.now)

    @property
    def gpus(self) -> float:
        """Number of GPUs of one pod."""
        resources = self.training.spec.resources or self.settings.worker_resources
        return resources.gpus if resources else 0.0


def plan_training(training: Training, seen: TrainingSeen, settings: Settings, now: datetime) -> Plan:
    """Return what to do for a training, and its status."""
    if training.deleting:
        return Plan()
    plan = _plan(training, seen, settings, now)
    # Once its time is over it goes, and has no status any more.
    beside = evaluations_beside(training, seen.judged) if plan.status is not None else ()
    return replace(plan, apply=(*plan.apply, *beside))


def _plan(training: Training, seen: TrainingSeen, settings: Settings, now: datetime) -> Plan:
    training = replace(training, status=_ended_by_now(training.status, now))
    case = _Case(training, seen, settings, now, World.of(training, seen, now))
    if is_finished(training.status):
        return _after_end(case)
    if case.world.attempt and case.world.record is None:
        job, pods = case.world.job, case.world.pods
        ending = judge(training.spec, job, pods, seen.nodes, now) or gives_way(training, job, pods, seen.rivals, now)
        return _record(case, ending) if ending else _during(case)
    return _between(case)


def _ended_by_now(status: ArcticTrainingStatus, now: datetime) -> ArcticTrainingStatus:
    """Return a status whose attempts ended now where they say that they will, or nothing that can be read.

    Clocks are set back, and statuses edited: what waits since then would wait for ever.
    """

    def ended(record: AttemptStatus) -> AttemptStatus:
        end = parse_time(record.completion_time)
        known = end is not None and end <= now
        return record if known else record.model_copy(update={"completion_time": format_time(now)})

    return status.model_copy(update={"attempts": list(map(ended, status.attempts))}) if status.attempts else status


def _record(case: _Case, ending: Ending) -> Plan:
    """Write an ending down, and nothing else: what follows from it is planned from what is written."""
    status, world, spec = case.training.status, case.world, case.training.spec
    if ending.final == "Failed" and _kept(case):
        # What ran before was right: the edit that is refused can be taken back, and the run goes on.
        ending = replace(ending, final=None, correctable=True)
    created = world.job.created if world.job else None
    counted = ending.counted and ending.final is None
    entry = AttemptStatus(
        number=world.attempt,
        reason=_stop_reason(case, ending),
        message=ending.message[:1024],
        counted=counted,
        refused=_revision_of_world(case) if ending.correctable else None,
        start_time=format_time(created) if created else None,
        completion_time=format_time(case.now),
    )
    restarts = (status.restarts or 0) + counted
    records = [r for r in status.attempts or () if r.number != world.attempt]
    after = status.model_copy(update={"restarts": restarts, "attempts": [*records, entry][-KEPT_RECORDS:]})
    outlook = Outlook("WaitingForNodes" if ending.reason == GAVE_WAY else "Restarting", waiting=ending.message)
    if ending.final == "Succeeded":
        outlook = Outlook("Succeeded", succeeded=ending.message)
    elif ending.final == "Failed":
        outlook = Outlook("Failed", failed=(ending.reason, ending.message))
    elif counted and restarts > spec.restart.limit:
        message = f"attempt {world.attempt} was failure {restarts} of at most {spec.restart.limit}: {ending.message}"
        outlook = Outlook("Failed", failed=("RestartLimitExceeded", message))
    elif refusal := _refusal(case, entry):
        outlook = refusal
    elif _rests(case):
        outlook = Outlook("Suspended")
    # Each kind has a watch of its own, and the Job's may be ahead of the pods': they would be judged as they were. What
    # a pod said for good is not looked at again: the pod may be gone by then, and its word with it.
    return Plan(status=case.status(outlook, after), requeue_after=0.1, needs_fresh=ending.final is None)


def _rests(case: _Case) -> bool:
    """Whether no world is to be made now; a running one comes to `suspendAt` by itself, and rests once that is kept."""
    spec = case.training.spec
    return spec.suspend or (spec.suspend_at is not None and _kept(case) >= max(1, parse_tokens(spec.suspend_at)))


def _kept(case: _Case) -> int:
    """Return the tokens of the last checkpoint; the newest world may have told of one that the status has not yet."""
    report = first_report(case.world.pods)
    told = (case.training.status.last_checkpoint, report.checkpoint if report else None)
    return max((each.tokens for each in told if each), default=0)


def _stop_reason(case: _Case, ending: Ending) -> str:
    if ending.reason != "Stopped":
        return ending.reason
    if case.training.spec.suspend:
        return SUSPENDED
    return "SpecChanged" if _is_outdated(case) or _waits_elsewhere(case) else "Stopped"


def _is_outdated(case: _Case) -> bool:
    """Whether the user has changed what is trained. The generation keeps an upgrade of ours from looking like that."""
    job = case.world.job
    return job is not None and job.revision != case.training.revision and job.generation != case.training.generation


def _waits_elsewhere(case: _Case) -> bool:
    """Whether the newest world waits in another queue than it should. One that runs stays where it was admitted."""
    job = case.world.job
    return job is not None and job.suspended and job.queue != (case.training.spec.queue or "")


def _revision_of_world(case: _Case) -> str:
    """Return the revision of the specification that the newest world has: the user may have edited it since."""
    return case.world.job.revision if case.world.job and _is_outdated(case) else case.training.revision


def _refusal(case: _Case, record: AttemptStatus | None) -> Outlook | None:
    """Return the outlook of a training whose workers have refused the specification that it still has."""
    if record is None or record.refused != case.training.revision:
        return None
    return Outlook("Failed", failed=(record.reason, record.message), correctable=True)


def _stamps(case: _Case, job: Job) -> tuple[Mark, ...]:
    """Note that a Job is up to date still: or else the next edit, or upgrade, would see two changes in one."""
    wanted = {REVISION_ANNOTATION: case.training.revision, GENERATION_ANNOTATION: str(case.training.generation)}
    if wanted == {REVISION_ANNOTATION: job.revision, GENERATION_ANNOTATION: str(job.generation)}:
        return ()
    return (Mark("Job", case.training.identity.namespace, job.name, job.uid, annotations=wanted),)


def _during(case: _Case) -> Plan:
    """The world is starting, running or stopping."""
    spec, world, now = case.training.spec, case.world, case.now
    deadline = _deadline_passed(case)
    if deadline:
        return Plan(delete=_stop(case), status=case.status(Outlook("Failed", failed=deadline)))
    job = world.job
    if job is None or job.deleting or spec.suspend or _is_outdated(case) or _waits_elsewhere(case):
        outlook = Outlook("Suspending" if spec.suspend else "Stopping")
        return Plan(
            delete=_stop(case),
            follow=_follow(case),
            status=case.status(outlook),
            requeue_after=5.0,
            needs_fresh=job is None,
        )
    status = case.status(_queued(job, case.seen.refusals) if job.suspended else Outlook("Running"))
    return Plan(
        apply=tuple(attempt_services(case.training.identity, world.attempt, case.settings)),
        mark=_stamps(case, job),
        delete=_leftovers(case),
        follow=_follow(case),
        commands=_commands(case),
        short=(job,) if job.suspended or lacks_pods(job.created, world.pods, spec.parallelism.nodes, now) else (),
        status=status,
        settling=settles(case.training, status, case.seen.live),
        begins=begins(case.training, status, case.seen.live),
        requeue_after=sooner(
            LOOK_AGAIN_SECONDS if len(world.pods) == spec.parallelism.nodes else PODS_AFTER.total_seconds(),
            _until_deadline(case),
            until_unreachable(world.pods, case.seen.nodes, now),
            LOOK_SECONDS if any(pod.unschedulable for pod in world.pods) else None,
            EXPLAINED_WITHIN.total_seconds() if any(is_unexplained(pod, now) for pod in world.pods) else None,
        ),
    )


def _queued(job: Job, told: Mapping[str, str]) -> Outlook:
    words = told.get(job.name, "")
    return Outlook("Queued", waiting=f"queue {job.queue} has not admitted it{': ' if words else ''}{words}")


def _between(case: _Case) -> Plan:
    """No world that counts: clear away the last one, wait for what must be waited for, make the next."""
    spec, world, now = case.training.spec, case.world, case.now
    refusal = _refusal(case, world.record)
    if world.alive:
        state = "WaitingForNodes" if gave_way(case.training.status) else "Restarting"
        outlook = refusal or Outlook("Suspending" if spec.suspend else state, waiting=_why(case))
        return Plan(delete=_stop(case), status=case.status(outlook), requeue_after=5.0)
    if _rests(case) and not refusal:
        return Plan(delete=_stop(case), status=case.status(Outlook("Suspended")))
    deadline = _deadline_passed(case)
    if deadline:
        return Plan(delete=_stop(case), status=case.status(Outlook("Failed", failed=deadline)))
    if refusal:
        return Plan(delete=_stop(case), status=case.status(refusal), requeue_after=_until_deadline(case))
    source = spec.model.from_
    if source and source.training and case.seen.base is None:
        outlook = Outlook("WaitingForTraining", waiting=waiting_for(source.training))
        return Plan(status=case.status(outlook), requeue_after=_until_deadline(case))
    first = goes_after(case.training, case.seen.rivals)
    if first:
        outlook = Outlook("WaitingForNodes", waiting=first)
        again = sooner(LOOK_SECONDS, _until_deadline(case))
        return Plan(delete=_stop(case), status=case.status(outlook), requeue_after=again)
    delay = _backoff_left(case)
    if delay > 0:
        return Plan(
            delete=_stop(case),
            status=case.status(Outlook("Restarting", waiting=_why(case))),
            requeue_after=sooner(delay, _until_deadline(case)),
        )
    hours, following = gpu_hours(case.training, case.gpus, world.job, world.pods, now), world.attempt + 1
    outlook = Outlook("Starting" if world.attempt == 0 else "Restarting", waiting=_why(case))
    status = case.status(outlook) | {"attempt": following}
    return Plan(
        apply=tuple(attempt_services(case.training.identity, following, case.settings)),
        create=(attempt_job(case.training, following, case.settings, case.seen.base, hours),),
        delete=_stop(case),
        status=status,
        begins=begins(case.training, status, case.seen.live),
        requeue_after=5.0,
        needs_fresh=True,
    )


def _after_end(case: _Case) -> Plan:
    status, now = case.training.status, case.now
    ended = parse_time(status.completion_time)
    ttl = case.training.spec.ttl_after_finished
    if ttl and ended:
        left = _left(ended, ttl, now)
        if is_evaluated(case.training, case.seen.judged) and left <= 0:
            identity = case.training.identity
            return Plan(delete=(Delete(identity.kind, identity.namespace, identity.name, identity.uid),))
        again = left if left > 0 else None  # an evaluation's end is an event
        return Plan(delete=_stop(case), status=case.status(Outlook.kept(status)), requeue_after=again)
    return Plan(delete=_stop(case), status=case.status(Outlook.kept(status)))


def _why(case: _Case) -> str:
    record = case.world.record
    return f"attempt {record.number} ended: {record.message}" if record else ""


def _stop(case: _Case) -> tuple[Delete, ...]:
    """End all Jobs that run; one that ended by itself ends its pods too, and is kept for its logs.

    Survivors go first: the cluster gives the pods of a deleted Job their whole grace period, and kubelets wait for it.
    """
    namespace = case.training.identity.namespace
    jobs = (
        Delete("Job", namespace, job.name, job.uid, after_pods=True)
        for job in case.seen.jobs
        if not (job.deleting or job.complete or job.failing or job.failed)
    )
    return (*_hurry(case), *jobs)


def _hurry(case: _Case) -> Iterator[Delete]:
    """End pods of which nothing is to be had any more before their grace period is over."""
    broken = _is_broken(case.world.record)
    for pod in case.seen.pods:
        survives = broken and not pod.ended and pod.attempt == case.world.attempt
        if not (pod.lingers or survives) or unreachable(pod, case.seen.nodes, case.now):
            continue
        seconds = LINGER_SECONDS if pod.lingers else SURVIVOR_SECONDS
        if pod.delete_requested is None or pod.grace_seconds > seconds:
            yield Delete("Pod", case.training.identity.namespace, pod.name, pod.uid, grace_seconds=seconds)


def _is_broken(record: AttemptStatus | None) -> bool:
    """Whether an attempt lost a rank otherwise than in order, when all write a checkpoint together."""
    return record is not None and (record.counted or bool(record.refused) or record.reason in (NODE_LOST, POD_LOST))


def _leftovers(case: _Case) -> tuple[Delete, ...]:
    """What earlier attempts left; the last one's Job is kept for its logs."""
    namespace, attempt = case.training.identity.namespace, case.world.attempt
    jobs = [
        Delete("Job", namespace, job.name, job.uid)
        for job in case.seen.jobs
        if job.attempt < attempt - 1 and not job.deleting
    ]
    others = [_delete(child) for child in case.seen.others if attempt_of(child) not in (None, attempt)]
    return (*jobs, *others)


def _delete(child: Manifest) -> Delete:
    metadata = child["metadata"]
    return Delete(child["kind"], metadata["namespace"], metadata["name"], metadata["uid"])


def _follow(case: _Case) -> tuple[Follow, ...]:
    pods = case.world.pods
    first = next((pod for pod in pods if pod.index == 0 and pod.ip and pod.phase == "Running"), None)
    return (Follow("", first.ip, Ports().control),) if first else ()


def _commands(case: _Case) -> tuple[Command, ...]:
    live, identity = case.seen.live, case.training.identity
    seen = observation_of(live, identity.uid, case.world.attempt) if live and live.connected else None
    return commands(case.training, seen, case.seen.answer)


def _backoff_left(case: _Case) -> float:
    """Return the seconds before the next attempt: growing with failures, none after an interruption."""
    record = case.world.record
    if record is None:
        return 0.0
    ended = parse_time(record.completion_time)
    assert ended is not None
    policy = case.training.spec.restart.backoff
    wait = 0.0
    if record.counted:
        grown = parse_duration(policy.initial) * float(policy.factor) ** min(_failures_in_a_row(case) - 1, 64)
        wait = min(grown, parse_duration(policy.max))
    elif (lived := _life(record)) is not None and lived < SHORT_LIFE and record.reason != SUSPENDED:
        wait = parse_duration(policy.initial)
    return wait - (case.now - ended).total_seconds()


def _failures_in_a_row(case: _Case) -> int:
    """Return the failures since an attempt has lived as long as the longest wait: what fails after that is new."""
    status, long = case.training.status, timedelta(seconds=parse_duration(case.training.spec.restart.backoff.max))
    failures = 0
    for record in reversed(status.attempts or ()):
        failures += record.counted
        if (lived := _life(record)) is not None and lived >= long:
            return max(1, failures)
    return max(1, status.restarts or 1)


def _life(record: AttemptStatus) -> timedelta | None:
    """Return how long an attempt lived, None where nobody saw its beginning."""
    started, ended = parse_time(record.start_time), parse_time(record.completion_time)
    return ended - started if started and ended else None


def _deadline(case: _Case) -> tuple[float, str, str] | None:
    """Return the seconds that are left, and reason and message of their end."""
    spec, told = case.training.spec, case.training.status.start_time
    if told is None and spec.start_deadline and not _rests(case):
        left = _left(case.training.created, spec.start_deadline, case.now)
        return left, "StartDeadlineExceeded", f"did not run within {spec.start_deadline} of its creation"
    started = parse_time(told)
    if started and spec.active_deadline:
        left = _left(started, spec.active_deadline, case.now)
        return left, "ActiveDeadlineExceeded", f"was not done within {spec.active_deadline} of its first start"
    return None


def _left(since: datetime, duration: str, now: datetime) -> float:
    return parse_duration(duration) - (now - since).total_seconds()


def _deadline_passed(case: _Case) -> tuple[str, str] | None:
    deadline = _deadline(case)
    return deadline[1:] if deadline and deadline[0] <= 0 else None


def _until_deadline(case: _Case) -> float | None:
    deadline = _deadline(case)
    return sooner(deadline[0]) if deadline else None
