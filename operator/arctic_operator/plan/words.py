"""What workers leave behind when they end, as sentences for people: never the JSON that they leave it in."""

import re
from typing import TypeVar

from pydantic import ValidationError

from arctic_api.ablation_pod import AblationReport
from arctic_api.common import REASON_PATTERN
from arctic_api.world import EvaluationReport, Report
from arctic_operator.observed import WORKER_CONTAINER, Pod

_Left = TypeVar("_Left", Report, EvaluationReport, AblationReport)

OUT_OF_MEMORY = "OOMKilled"
"""Reason of a container that the kernel killed, or one of whose processes it killed, for its memory."""
NO_KUEUE = (
    "the cluster has no Kueue (kueue.x-k8s.io/v1beta1), which admits what names a queue: install it, or leave queue out"
)


def report_of(pod: Pod | None) -> Report | None:
    """Return what a pod of a training or a service left in its termination message, None if that is no report."""
    return _left_by(pod, Report)


def evaluation_report_of(pod: Pod | None) -> EvaluationReport | None:
    """Return what the pod of an evaluation left in its termination message, None if that is no report."""
    return _left_by(pod, EvaluationReport)


def ablation_report_of(pod: Pod | None) -> AblationReport | None:
    """Return what the pod of an ablation left in its termination message, None if that is no report."""
    return _left_by(pod, AblationReport)


def _left_by(pod: Pod | None, kind: type[_Left]) -> _Left | None:
    """Anybody's image may have written it: a reason that no condition can have is left out."""
    if pod is None or not pod.exit_message:
        return None
    try:
        report = kind.model_validate_json(pod.exit_message)
    except ValidationError:
        return None
    return report if re.fullmatch(REASON_PATTERN, report.reason) else report.model_copy(update={"reason": ""})


def last_words(pod: Pod) -> str:
    """Return what a pod said last: its report's sentence, or the last line of its log; empty if it said nothing."""
    report = report_of(pod)
    if report is not None:
        return report.message
    lines = [line.strip() for line in pod.exit_message.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def exit_of(pod: Pod) -> str:
    """Say how a pod's worker ended, with what it said last."""
    said = last_words(pod)
    because = f" ({pod.exit_reason})" if pod.exit_reason and pod.exit_reason != "Error" else ""
    return f"pod {pod.name} exited with code {pod.exit_code}{because}{f': {said}' if said else ''}"


def failure_of(pod: Pod) -> str:
    """Say why the cluster has made a pod fail, in its own words."""
    words = f": {pod.failure_message}" if pod.failure_message else ""
    return f"pod {pod.name} failed ({pod.failure or 'no reason given'}){words}"


def out_of_memory(pod: Pod, remedy: str) -> str:
    """Say which container was killed for its memory, at which limit, with what it said last, and what to change."""
    limit = f"its limit of {pod.memory_limit}" if pod.memory_limit else "what its node has, for it has no limit"
    said = last_words(pod)
    return (
        f"container {WORKER_CONTAINER} of pod {pod.name} needed more memory than {limit}"
        f"{f' ({said})' if said else ''}: {remedy}"
    )
