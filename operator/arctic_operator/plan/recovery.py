"""How long it takes from a fault until a world trains or serves again, and what of that is spent on what."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from arctic_operator.observed import Inference, InferenceSeen, Node, Pod, Training, TrainingSeen, is_silent
from arctic_operator.plan.conditions import is_true
from arctic_operator.plan.endings import NODE_LOST, POD_LOST
from arctic_operator.plan.words import OUT_OF_MEMORY

FAULTS = frozenset({NODE_LOST, POD_LOST, OUT_OF_MEMORY, "PodDeleted", "Disrupted", "WorkerFailed"})
"""Kinds of faults: workers and the cluster have more reasons, which are one of these."""
DISRUPTIONS = frozenset(
    {"Interrupted", "PreemptionByScheduler", "DeletionByTaintManager", "EvictionByEvictionAPI", "DeletionByPodGC"}
) | {"TerminationByKubelet", "Disrupted"}
OVER = frozenset({"Succeeded", "Failed", "Suspending", "Suspended", "Stopping"})
OVER |= {"WaitingForTraining", "WaitingForNodes", "Queued"}
"""States of a training that is not to run again, or not because of the fault."""


@dataclass(frozen=True)
class Fault:
    """What broke a world, when it began as far as the cluster tells, and when it was noticed."""

    kind: str
    began: datetime
    noticed: datetime


@dataclass(frozen=True)
class Recovery:
    """Seconds by part: noticing, waiting (for what is left, and a back-off), scheduling, loading."""

    fault: str
    seconds: Mapping[str, float]


def track(
    before: Fault | None,
    subject: Training | Inference,
    seen: TrainingSeen | InferenceSeen,
    status: Mapping[str, Any],
    now: datetime,
) -> tuple[Fault | None, Recovery | None]:
    """Return the fault that a world has not recovered from, and its recovery if that is over now.

    `status` is the one that is written over the subject's.
    """
    if isinstance(subject, Training):
        fault, again, pods = _of_training(before, subject, seen.pods, seen.nodes, status, now)
    else:
        fault, again, pods = _of_service(before, subject, seen.pods, seen.nodes, status, now)
    if fault is None or not again:
        return fault, None
    made = max([fault.noticed, *(pod.created for pod in pods)])
    placed = max([made, *(pod.started for pod in pods if pod.started)])
    moments = [fault.began, fault.noticed, min(made, now), min(placed, now), now]
    lengths = [(end - start).total_seconds() for start, end in itertools.pairwise(moments)]
    parts = ("noticing", "waiting", "scheduling", "loading")
    return None, Recovery(fault.kind, dict(zip(parts, lengths, strict=True)))


Standing = tuple[Fault | None, bool, Sequence[Pod]]
"""The fault, whether the world is back, and the pods that it has now."""


def _of_training(
    before: Fault | None,
    training: Training,
    pods: Sequence[Pod],
    nodes: Mapping[str, Node] | None,
    status: Mapping[str, Any],
    now: datetime,
) -> Standing:
    known = {record.number for record in training.status.attempts or ()}
    new = [record for record in status.get("attempts") or () if record["number"] not in known]
    if status["state"] in OVER:
        return None, False, ()
    if new:
        number, reason = new[-1]["number"], new[-1]["reason"]
        evidence = _evidence([pod for pod in pods if pod.attempt == number], nodes, now)
        began = min((moment for _, moment in evidence), default=now)
        return Fault(_kind(reason), began, now), False, ()
    return before, status["state"] == "Running", [pod for pod in pods if pod.attempt == status.get("attempt")]


def _kind(reason: str) -> str:
    if reason in DISRUPTIONS:
        return "Disrupted"
    return reason if reason in FAULTS else "WorkerFailed"


def _of_service(
    before: Fault | None,
    inference: Inference,
    pods: Sequence[Pod],
    nodes: Mapping[str, Node] | None,
    status: Mapping[str, Any],
    now: datetime,
) -> Standing:
    same = inference.status.observed_generation == inference.generation
    was, ready = is_true(inference.status.conditions, "Ready"), status["state"] == "Ready"
    if not same or inference.spec.suspend:
        return None, False, ()
    if was and not ready:
        evidence = sorted(_evidence(pods, nodes, now), key=lambda each: each[1])
        return (Fault(*evidence[0], now) if evidence else None), False, ()
    return before, ready, [pod for pod in pods if pod.ready_since]


def _evidence(pods: Sequence[Pod], nodes: Mapping[str, Node] | None, now: datetime) -> Iterator[tuple[str, datetime]]:
    """Yield what may have broken a world, and since when."""
    for pod in pods:
        node = nodes.get(pod.node) if nodes else None
        if not pod.ended and is_silent(pod, nodes):
            yield NODE_LOST, (node.ready_changed if node and node.ready_changed else now)
        if pod.disrupted:
            yield "Disrupted", pod.disrupted
        elif pod.delete_requested:
            yield "PodDeleted", pod.delete_requested
        if pod.finished and pod.exit_code:
            yield (OUT_OF_MEMORY if pod.exit_reason == OUT_OF_MEMORY else "WorkerFailed"), pod.finished
