"""What should become of an evaluation: one Job, which Kubernetes tries again, and the status that tells of it. Pure.

What is answered is in the evaluation's folder, so whatever ends a pod costs only what was under way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from arctic_api.world import EvaluationReport, Ports
from arctic_operator.evaluations import Awaited, Evaluation, EvaluationSeen
from arctic_operator.manifests.evaluation import evaluation_job
from arctic_operator.manifests.single_pod import single_pod_policy
from arctic_operator.observed import Job, Pod, Trouble
from arctic_operator.plan.actions import Delete, Follow, Plan, sooner
from arctic_operator.plan.conditions import (
    PODS_AFTER,
    lacks_pods,
    refusal_of,
    trouble_of,
    unreachable,
    until_unreachable,
)
from arctic_operator.plan.endings import NODE_LOST
from arctic_operator.plan.evaluation_status import Outlook, evaluation_status, is_finished, kept_status
from arctic_operator.plan.single_job import ending_of, last_words, lost, pods_of, present
from arctic_operator.plan.words import evaluation_report_of
from arctic_operator.settings import Settings

LOOK_SECONDS = 5.0
"""How long it is waited for what no event tells, such as a service that becomes ready."""
LOOK_AGAIN_SECONDS = 1800.0
"""When an evaluation in which nothing happens is looked at again: its certificate may be near its end."""
MORE_MEMORY = "raise resources.limits.memory, or evaluate an ArcticInference by model.service"


@dataclass(frozen=True)
class _Case:
    evaluation: Evaluation
    seen: EvaluationSeen
    settings: Settings
    now: datetime

    def status(self, outlook: Outlook) -> dict[str, Any]:
        return evaluation_status(self.evaluation, self.seen, outlook, self.now)


def plan_evaluation(evaluation: Evaluation, seen: EvaluationSeen, settings: Settings, now: datetime) -> Plan:
    """Return what to do for an evaluation, and its status."""
    if evaluation.deleting:
        return Plan()
    if is_finished(evaluation.status, evaluation.generation):
        return Plan(status=kept_status(evaluation.status, evaluation.generation, now))
    case = _Case(evaluation, seen, settings, now)
    job = next((job for job in seen.jobs if _is_current(evaluation, job)), None)
    if job is None or job.deleting:
        return _begin(case)
    pods = pods_of(job, seen.pods)
    ending = _ending(job, pods)
    if ending is not None:
        # Each kind has a watch of its own, and the Job's may be ahead of the pods'.
        return Plan(delete=_strangers(case, job), status=case.status(ending), needs_fresh=True)
    return _during(case, job, pods)


def _is_current(evaluation: Evaluation, job: Job) -> bool:
    """Whether a Job is of what is written now. The generation keeps an upgrade of ours from looking like an edit."""
    return job.revision == evaluation.revision or job.generation == evaluation.generation


def _strangers(case: _Case, job: Job | None) -> tuple[Delete, ...]:
    """End the Jobs of earlier edits; of None, the present one too."""
    namespace = case.evaluation.identity.namespace
    return tuple(
        Delete("Job", namespace, other.name, other.uid)
        for other in case.seen.jobs
        if other is not job and not other.deleting
    )


def _begin(case: _Case) -> Plan:
    """There is no Job of what is written now: make it, once the earlier ones' pods are gone and there is a model."""
    target, compared = case.seen.target, case.seen.compared
    if any(not pod.ended and not _is_lost(case, pod) for pod in case.seen.pods) or any(
        job.deleting for job in case.seen.jobs
    ):
        return Plan(
            delete=_strangers(case, None), status=case.status(Outlook("Restarting")), requeue_after=LOOK_SECONDS
        )
    if isinstance(target, Awaited):
        return _wait(case, target)
    if isinstance(compared, Awaited):
        return _wait(case, compared)
    return Plan(
        apply=(single_pod_policy(case.evaluation.identity, case.settings),),
        create=(evaluation_job(case.evaluation, target, case.settings, compared),),
        delete=_strangers(case, None),
        status=case.status(Outlook("Starting", weights=target.weights)),
        requeue_after=LOOK_SECONDS,
        needs_fresh=True,
    )


def _wait(case: _Case, awaited: Awaited) -> Plan:
    status = case.status(Outlook(awaited.state, waiting=awaited.message, trouble=awaited.lack))
    return Plan(delete=_strangers(case, None), status=status, requeue_after=LOOK_SECONDS)


def _is_lost(case: _Case, pod: Pod) -> bool:
    return unreachable(pod, case.seen.nodes, case.now)


def _during(case: _Case, job: Job, pods: Sequence[Pod]) -> Plan:
    pod = present(pods)
    if pod and not pod.ended and _is_lost(case, pod):
        return _give_up(case, pod)
    return Plan(
        apply=(single_pod_policy(case.evaluation.identity, case.settings),),
        delete=_strangers(case, job),
        follow=(Follow("", pod.ip, Ports().control),) if pod and pod.ip and pod.phase == "Running" else (),
        status=case.status(_outlook(case, job, pod)),
        short=(job,) if lacks_pods(job.created, pods, 1, case.now) else (),
        requeue_after=sooner(
            LOOK_AGAIN_SECONDS if pod else PODS_AFTER.total_seconds(),
            until_unreachable(pods, case.seen.nodes, case.now),
        ),
    )


def _give_up(case: _Case, pod: Pod) -> Plan:
    """A Job replaces no pod before its node says that it has ended: the Job goes, and one of the same name follows.

    That one knows of no failures: a node's loss is none, and earlier ones are forgotten with it.
    """
    words = f"{lost(pod)}: another pod goes on with what is not yet answered"
    return Plan(
        delete=_strangers(case, None),
        status=case.status(Outlook("Restarting", trouble=Trouble(NODE_LOST, words))),
        requeue_after=LOOK_SECONDS,
        needs_fresh=True,
    )


def _outlook(case: _Case, job: Job, pod: Pod | None) -> Outlook:
    if pod is None:
        return Outlook("Starting", trouble=refusal_of(job.name, case.seen.refusals))
    if pod.ended:
        return Outlook("Restarting", trouble=Trouble("Restarting", last_words(pod, evaluation_report_of(pod))))
    trouble = trouble_of([pod], MORE_MEMORY)
    return Outlook("Running" if pod.ready_since else "Starting", trouble=trouble)


def _ending(job: Job, pods: Sequence[Pod]) -> Outlook | None:
    """Return how an evaluation ended, None while it has not."""
    match ending_of(job, pods):
        case None:
            return None
        case "done", done:
            report = evaluation_report_of(done)
            words = (report.message if report else "") or "all suites were run"
            unknown = "the pod's last word is lost: what it found is in results.json"
            return Outlook("Succeeded", succeeded=words if report else unknown, report=report)
        case "refused", Pod() as pod:
            return _failure(pod, "BadInput")
        case _, None:
            return Outlook("Failed", failed=(job.reason or "JobFailed", job.message or "its Job failed"))
        case _, pod:
            return _failure(pod, job.reason or "JobFailed")


def _failure(pod: Pod, reason: str) -> Outlook:
    report: EvaluationReport | None = evaluation_report_of(pod)
    told = report.reason if report and report.reason else reason
    return Outlook("Failed", failed=(told, last_words(pod, report)), report=report)
