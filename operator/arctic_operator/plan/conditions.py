"""Conditions, and the reasons that children give for them."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal

from arctic_api.common import Condition
from arctic_operator.observed import Node, Pod, Trouble, format_time
from arctic_operator.plan.actions import Event
from arctic_operator.plan.words import OUT_OF_MEMORY, failure_of, out_of_memory

IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
CONTAINER_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
CRASH_LOOP = "CrashLoopBackOff"
"""What the kubelet says of a container that it lets wait between two crashes."""
UNREACHABLE_AFTER = timedelta(seconds=10)
"""How long a node is NotReady before its worlds are given up: it has been silent for most of a minute by then."""
UNREACHABLE_AFTER_ALL = timedelta(seconds=60)
"""The same where all nodes were NotReady at once, from when the first was back: after an outage of the control plane
kubelets come back one after the other, as each waits up to half a minute between two tries."""
OVERDUE_AFTER = timedelta(seconds=30)
"""What a kubelet gets besides a deleted pod's own grace to end it, where nothing else tells whether it lives."""
PODS_AFTER = timedelta(seconds=10)
"""What a Job or StatefulSet gets to make its pods before it is asked why it has not."""
ENDS = {"Degraded": "Recovered", "Ready": "NotReady", "Available": "NotAvailable", "Suspended": "Resumed"}
"""Conditions whose end is worth an event."""
TROUBLES = ("Degraded", "Failed")
"""Conditions that tell of trouble."""
UNTOLD = frozenset({"PodsScheduled", "WorkersConnected"})
"""Steps of a start, which the state tells, and the cluster's own events of each pod: an event of each says no more."""
LONGEST_MESSAGE = 1024
REASON_LETTERS = 128


class Conditions:
    """The conditions of one status, all of one generation. A transition's time is kept while the status stays."""

    def __init__(self, before: Iterable[Condition] | None, generation: int, now: datetime) -> None:
        self._before = {condition.type: condition for condition in before or ()}
        self._generation = generation
        self._now = now
        self._set: dict[str, Condition] = {}

    def set(self, kind: str, status: bool | None, reason: str, message: str = "") -> None:
        """Set one condition; None is Unknown."""
        text: str = {True: "True", False: "False", None: "Unknown"}[status]
        before = self._before.get(kind)
        kept = before.last_transition_time if before and before.status == text else format_time(self._now)
        self._set[kind] = Condition.model_validate(
            {
                "type": kind,
                "status": text,
                "reason": _as_reason(reason),
                "message": message[:LONGEST_MESSAGE],
                "lastTransitionTime": kept,
                "observedGeneration": self._generation,
            }
        )

    def all(self) -> list[Condition]:
        """Return the conditions in the order in which they were set."""
        return list(self._set.values())


@functools.lru_cache(maxsize=256)
def _as_reason(told: str) -> str:
    """Return what a condition may have as its reason: some of others are none, as a kubelet's `OutOfnvidia.com/gpu`."""
    letters = re.sub("[^A-Za-z0-9_,:]", "_", told[:REASON_LETTERS])
    return re.sub("^[^A-Za-z]+|[,:]+$", "", letters) or "Unknown"


def find(conditions: Iterable[Condition] | None, kind: str) -> Condition | None:
    """Return a condition by its type."""
    return next((condition for condition in conditions or () if condition.type == kind), None)


def is_true(conditions: Iterable[Condition] | None, kind: str) -> bool:
    """Whether a condition is there and True."""
    condition = find(conditions, kind)
    return condition is not None and condition.status == "True"


def waiting_for(training: str) -> str:
    """Return the sentence on a training that may export its weights yet."""
    return f"waits for ArcticTraining {training} to export its weights"


def unreachable(pod: Pod, nodes: Mapping[str, Node] | None, now: datetime) -> bool:
    """Whether a pod's node has been NotReady for so long, or is gone, that nothing is known about the pod any more.

    Where nodes may not be read, it is so of a pod that is deleted, as the cluster does in time, and not ended.
    """
    if nodes is not None and pod.node and pod.node not in nodes:
        return True
    moment = _unreachable_at(pod, nodes)
    return moment is not None and now >= moment


def _lost_at(node: Node, nodes: Mapping[str, Node]) -> datetime | None:
    """Return when a silent node counts as lost, None while it does not.

    Where no node is ready it is the control plane that was away, or the network to it, and pods run on: Kubernetes
    evicts nothing then either.
    """
    if node.ready or node.ready_changed is None:
        return None
    back = [other.ready_changed for other in nodes.values() if other.ready]
    if not back:
        return None
    since = [moment for moment in back if moment and moment > node.ready_changed]
    if len(since) == len(back):
        return min(since) + UNREACHABLE_AFTER_ALL
    return node.ready_changed + UNREACHABLE_AFTER


def _overdue_at(pod: Pod) -> datetime | None:
    """Return when a kubelet that lives has ended a pod that is deleted; None where none has to."""
    if pod.ended or not pod.node or pod.delete_requested is None:
        return None
    return pod.delete_requested + timedelta(seconds=pod.grace_seconds) + OVERDUE_AFTER


def until_unreachable(pods: Iterable[Pod], nodes: Mapping[str, Node] | None, now: datetime) -> float | None:
    """Return the seconds until a pod is unreachable; no event will tell.

    Nor will one where no node is ready, if the first that comes back is another's.
    """
    if nodes and not any(node.ready for node in nodes.values()):
        return UNREACHABLE_AFTER.total_seconds()
    moments = [_unreachable_at(pod, nodes) for pod in pods]
    left = [(moment - now).total_seconds() for moment in moments if moment]
    return min((seconds for seconds in left if seconds > 0), default=None)


def _unreachable_at(pod: Pod, nodes: Mapping[str, Node] | None) -> datetime | None:
    """Return when a pod counts as unreachable; None where nothing hints at that, or its node is gone already."""
    if nodes is None:
        return _overdue_at(pod)
    node = nodes.get(pod.node)
    return _lost_at(node, nodes) if node else None


def lacks_pods(created: datetime | None, pods: Sequence[Pod], wanted: int, now: datetime) -> bool:
    """Whether a child has had the time to make all of its pods, and has not."""
    return len(pods) < wanted and created is not None and now - created >= PODS_AFTER


def refusal_of(name: str, refusals: Mapping[str, str]) -> Trouble | None:
    """Return what keeps a child from making its pods: a quota, a LimitRange, a webhook."""
    if name not in refusals:
        return None
    return Trouble("PodsNotCreated", f"{name} can't make its pods: {refusals[name]}")


def trouble_of(pods: Sequence[Pod], remedy: str) -> Trouble | None:
    """Return what keeps pods from running, the most telling first: configuration, image, memory, room.

    `remedy` says what to change where the memory is not enough.
    """
    for pod in pods:
        if pod.waiting in CONTAINER_REASONS:
            return Trouble(pod.waiting, f"pod {pod.name}: {pod.waiting_message}")
    for pod in pods:
        if pod.waiting in IMAGE_REASONS:
            return Trouble(pod.waiting, f"pod {pod.name}: {pod.waiting_message}")
    for pod in pods:
        if pod.failure:
            return Trouble(pod.failure, failure_of(pod))
        if pod.exit_reason == OUT_OF_MEMORY:
            return Trouble(OUT_OF_MEMORY, out_of_memory(pod, remedy))
    for pod in pods:
        if pod.unschedulable:
            return Trouble("Unschedulable", f"pod {pod.name}: {pod.unschedulable}")
    return None


def events_between(before: Iterable[Condition] | None, after: Iterable[Condition]) -> list[Event]:
    """Return an event for each condition that has become true, or true for another reason, and for what is over.

    What is named after trouble, as the progress that it stops, says no more than that.
    """
    known, after = {condition.type: condition for condition in before or ()}, list(after)
    troubles = {each.reason for each in after if each.type in TROUBLES and each.status == "True"}
    events = []
    for condition in after:
        old = known.get(condition.type)
        was_true = old is not None and old.status == "True"
        if condition.status == "True" and condition.type not in UNTOLD:
            again = was_true and old and old.reason == condition.reason
            if not again and (condition.type in TROUBLES or condition.reason not in troubles):
                kind: Literal["Normal", "Warning"] = "Warning" if condition.type in TROUBLES else "Normal"
                events.append(Event(kind, condition.reason, condition.message or condition.type))
        elif was_true and condition.type in ENDS:
            events.append(Event("Normal", ENDS[condition.type], condition.message or condition.reason))
    return events
