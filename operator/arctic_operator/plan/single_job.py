"""What has become of a Job of one pod, which Kubernetes tries again. Pure."""

from collections.abc import Sequence
from typing import Literal

from arctic_api.ablation_pod import AblationReport
from arctic_api.world import EvaluationReport, ExitCode
from arctic_operator.observed import Job, Pod
from arctic_operator.plan.words import exit_of, failure_of

Ending = Literal["done", "refused", "failed"]


def ending_of(job: Job, pods: Sequence[Pod]) -> tuple[Ending, Pod | None] | None:
    """Return how a Job has ended, and the pod whose end it was, as far as that is still there; None before its end."""
    by_age = sorted(pods, key=lambda pod: pod.created, reverse=True)
    done = next((pod for pod in by_age if pod.exit_code == ExitCode.DONE), None)
    if done is not None or job.complete:
        return "done", done
    refused = next((pod for pod in by_age if pod.exit_code == ExitCode.BAD_INPUT), None)
    if refused is not None:
        return "refused", refused
    return ("failed", next((pod for pod in by_age if pod.ended), None)) if job.failed else None


def present(pods: Sequence[Pod]) -> Pod | None:
    """Return the pod that does the work now, the last one if none does."""
    return max(pods, key=lambda pod: (not pod.ended, pod.created), default=None)


def pods_of(job: Job, pods: Sequence[Pod]) -> list[Pod]:
    """Return those that are a Job's."""
    return [pod for pod in pods if pod.owner is not None and pod.owner.uid == job.uid]


def lost(pod: Pod) -> str:
    """Say that a pod's node is gone."""
    return f"node {pod.node} of pod {pod.name} can't be reached"


def last_words(pod: Pod, report: EvaluationReport | AblationReport | None) -> str:
    """Say how a pod ended: in its own report's words, if it left one."""
    if report is not None and report.message:
        return report.message
    return failure_of(pod) if pod.failure else exit_of(pod)
