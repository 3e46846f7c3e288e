"""How an attempt ended, told from what its Job and pods left behind."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import CORRECTABLE, SUSPENDED, ExitCode, Report
from arctic_operator.observed import Job, Node, Pod, is_silent
from arctic_operator.plan.conditions import unreachable
from arctic_operator.plan.words import OUT_OF_MEMORY, exit_of, failure_of, out_of_memory, report_of

NODE_LOST, POD_LOST, INTERRUPTED, POD_DELETED = "NodeLost", "PodLost", "Interrupted", "PodDeleted"
BY_KUBELET, EVICTED = "TerminationByKubelet", "Evicted"
TOLD_TO_END = frozenset({ExitCode.INTERRUPTED, 128 + 9, 128 + 15})
"""Exit codes of workers that somebody has ended: SIGKILL's and SIGTERM's among them."""
START_ERROR, CALLED_OFF = "StartError", "context canceled"
"""How a container ends whose start was called off: its pod is to go, or its kubelet went."""
EXPLAINED_WITHIN = timedelta(seconds=3)
"""A kubelet that evicts a pod says so a moment after the worker's end, with the pod's last phase."""
LESS_MEMORY = "raise resources.limits.memory, or lower batch.microBatchSize or the stage's sequenceLength"
CONSEQUENCES = frozenset({"PeerLost", "RankHung"})
"""Reasons of workers whose peer is gone, or does not answer."""
UNCOUNTED_EXITS = (None, ExitCode.DONE, ExitCode.INTERRUPTED)


@dataclass(frozen=True)
class Ending:
    """The end of one attempt.

    `counted` ends move it towards the restart limit, `final` ones end the training, and after `correctable` ones it
    waits for an edit.
    """

    reason: str
    message: str
    time: datetime
    counted: bool = False
    final: Literal["Succeeded", "Failed"] | None = None
    correctable: bool = False


def first_report(pods: Sequence[Pod]) -> Report | None:
    """Return the report of completion index 0."""
    return report_of(next((pod for pod in pods if pod.index == 0), None))


def is_final(spec: ArcticTrainingSpec, report: Report | None) -> bool:
    """Whether a report carries the final marker: the export, or, with no export asked for, the last checkpoint."""
    if report is None or report.outcome != "succeeded":
        return False
    return bool(report.export_uri or (spec.checkpoint.export == "none" and report.checkpoint))


def judge(
    spec: ArcticTrainingSpec, job: Job | None, pods: Sequence[Pod], nodes: Mapping[str, Node] | None, now: datetime
) -> Ending | None:
    """Return how the attempt ended, None while it has not. `pods` are those of the attempt.

    What came first decides: a peer's crash follows from a drained pod as a deleted pod follows from a peer's crash.
    """
    refused = next((pod for pod in pods if pod.exit_code == ExitCode.BAD_INPUT), None)
    if refused:
        return _refusal(refused, now)
    if job is None or job.deleting:
        alive = any(not pod.ended and not unreachable(pod, nodes, now) for pod in pods)
        return None if alive else Ending("Stopped", "the world was stopped and its pods are gone", now)
    complete = job.complete or _all_done(spec, pods, job)
    if job.suspended and not complete and (pods or not job.queue):
        return _taken_back(job, now)
    disruptions = list(_disruptions(pods, nodes, now, _swept_since(job, complete=complete)))
    causes = [*disruptions, *_failures(pods, nodes, now)]
    if complete:
        return _completion(spec, pods, causes, now)
    if any(is_unexplained(pod, now) for pod in pods):
        return None
    if causes:
        first = _cause_of(causes)
        told = (ending for ending in disruptions if ending.reason not in (INTERRUPTED, NODE_LOST, SUSPENDED))
        return next(told, first) if first.reason == INTERRUPTED else first
    if job.failed and len(pods) < spec.parallelism.nodes:
        return _pod_lost(job.ended or now)
    if job.failed:
        return Ending(job.reason or "JobFailed", job.message or "the Job failed", job.ended or now, counted=True)
    return None


def _swept_since(job: Job, *, complete: bool) -> datetime | None:
    """Return since when a Job that has ended, or failed, deletes its pods itself; None while it does not."""
    if job.failing and not complete:
        return job.failing
    return datetime.min.replace(tzinfo=UTC) if job.failed or complete else None


def _cause_of(causes: Sequence[Ending]) -> Ending:
    """Return what came first. A lost or hung peer never did, where something else tells: clocks of nodes differ.

    But what was deleted, or told to end, may be so because of it: the Job sees to that.
    """
    # Times are whole seconds. In one second a crash comes first (its Job deletes the peers), consequences last.
    first = min(causes, key=lambda ending: (ending.time, ending.reason in CONSEQUENCES, not ending.counted))
    if first.reason not in CONSEQUENCES:
        return first
    others = (each for each in causes if each.reason not in {*CONSEQUENCES, POD_DELETED, INTERRUPTED, SUSPENDED})
    return min(others, key=lambda each: each.time, default=first)


def is_unexplained(pod: Pod, now: datetime) -> bool:
    """Whether somebody has ended a pod, and it may yet be said who: until then its peers' word says nothing either."""
    asked = _was_told_to_end(pod) and not pod.disrupted and pod.delete_requested is None
    since = now - (pod.finished or now)
    # While others run in it the pod's phase says nothing, and a clock that is ahead not when they have had their time.
    ahead = pod.lingers and since <= -EXPLAINED_WITHIN
    return pod.unexplained and asked and since < EXPLAINED_WITHIN and not ahead


def _was_told_to_end(pod: Pod) -> bool:
    return pod.exit_code in TOLD_TO_END and pod.exit_reason != OUT_OF_MEMORY


def _ended_by_deletion(pod: Pod) -> bool:
    """A worker that has just begun ends in the second in which it is told to, and leaves no word."""
    if pod.delete_requested is None or pod.finished is None:
        return False
    return pod.delete_requested < pod.finished or (pod.delete_requested == pod.finished and _was_told_to_end(pod))


def _all_done(spec: ArcticTrainingSpec, pods: Sequence[Pod], job: Job) -> bool:
    """Whether all workers are done in a world whose Job can't say so, for what else is in its pods.

    Such a container never ends, or it ended otherwise, and the Job has failed.
    """
    done = len(pods) == spec.parallelism.nodes and all(pod.exit_code == ExitCode.DONE for pod in pods)
    return done and (job.failed or any(pod.lingers for pod in pods))


def _taken_back(job: Job, now: datetime) -> Ending:
    """A Job that goes on after that would do so in the same epoch: what its old pods still write would count."""
    if job.queue:
        return Ending("Preempted", f"queue {job.queue} has taken its nodes back", now)
    return Ending("JobSuspended", "somebody has suspended its Job", now)


def _pod_lost(time: datetime) -> Ending:
    return Ending(POD_LOST, "a pod of the world is gone and left no word", time)


def _completion(spec: ArcticTrainingSpec, pods: Sequence[Pod], causes: list[Ending], now: datetime) -> Ending:
    """Exit code 0 in all pods is not enough: workers that are told to stop may end so in mid-run."""
    if is_final(spec, first_report(pods)):
        return Ending(
            "Succeeded", "the curriculum is done and its final checkpoint is committed", now, final="Succeeded"
        )
    if causes:
        return min(causes, key=lambda ending: ending.time)
    if not any(pod.index == 0 for pod in pods):
        return _pod_lost(now)
    message = "all workers ended with exit code 0, but no final checkpoint was committed"
    return Ending("NoFinalCheckpoint", message, now, counted=True)


def _refusal(pod: Pod, now: datetime) -> Ending:
    report = report_of(pod)
    message = report.message if report and report.message else exit_of(pod)
    reason = report.reason if report and report.reason else "BadInput"
    if reason in CORRECTABLE:
        return Ending(reason, message, pod.finished or now, correctable=True)
    return Ending(reason, message, pod.finished or now, final="Failed")


def _disruptions(
    pods: Sequence[Pod], nodes: Mapping[str, Node] | None, now: datetime, swept: datetime | None
) -> Iterator[Ending]:
    """A Job deletes the pods of a world that failed: their deletion says nothing from then on."""
    for pod in pods:
        if pod.disrupted:
            words = pod.disruption_message or pod.failure_message
            told = f"pod {pod.name} was disrupted{f': {words}' if words else ''}"
            # The kubelet says so last: its worker's end came before, and that of its peers may have.
            by_kubelet = pod.finished if pod.disruption == BY_KUBELET else None
            yield Ending(pod.disruption or "Disrupted", told, min(pod.disrupted, by_kubelet or pod.disrupted))
        elif pod.delete_requested and (swept is None or pod.delete_requested < swept):
            yield Ending(POD_DELETED, f"pod {pod.name} was deleted", pod.delete_requested)
        if pod.exit_code == ExitCode.INTERRUPTED:
            yield _interruption(pod, now)
        if not pod.ended and unreachable(pod, nodes, now):
            yield _node_lost(pod, nodes, now)


def _interruption(pod: Pod, now: datetime) -> Ending:
    report = report_of(pod)
    if report and report.reason == SUSPENDED:
        return Ending(SUSPENDED, report.message, pod.finished or now)
    if pod.failure == EVICTED and not pod.disrupted:  # it took more than it may, and would again
        return Ending(pod.failure, failure_of(pod), pod.finished or now, counted=True)
    return Ending(INTERRUPTED, f"pod {pod.name} was interrupted and ended in order", pod.finished or now)


def _node_lost(pod: Pod, nodes: Mapping[str, Node] | None, now: datetime) -> Ending:
    why = "can't be reached" if nodes is None or pod.node in nodes else "is not in the cluster any more"
    return Ending(NODE_LOST, f"node {pod.node} of pod {pod.name} {why}", now)


def _failures(pods: Sequence[Pod], nodes: Mapping[str, Node] | None, now: datetime) -> Iterator[Ending]:
    """Ranks that lost a peer, or waited in vain, end with that word: where its node is silent that is the cause."""
    silent = next((pod for pod in pods if not pod.ended and is_silent(pod, nodes)), None)
    for pod in pods:
        if pod.disrupted or _ended_by_deletion(pod):
            continue
        if pod.exit_reason == START_ERROR and CALLED_OFF in pod.exit_message:
            yield Ending(INTERRUPTED, exit_of(pod), pod.finished or now)
        elif pod.exit_code not in UNCOUNTED_EXITS:
            report = report_of(pod)
            if silent and report and report.reason in CONSEQUENCES:
                yield _node_lost(silent, nodes, pod.finished or now)
                continue
            if OUT_OF_MEMORY in (pod.exit_reason, report and report.reason):
                reason, words = OUT_OF_MEMORY, out_of_memory(pod, LESS_MEMORY)
            elif pod.failure and not report:
                reason, words = pod.failure, failure_of(pod)
            else:
                reason = report.reason if report else ""
                words = report.message if report and report.message else exit_of(pod)
            yield Ending(reason or "WorkerFailed", words, pod.finished or now, counted=True)
        elif pod.phase == "Failed" and pod.exit_code is None:
            yield Ending(pod.failure or "PodFailed", failure_of(pod), pod.finished or now, counted=True)
