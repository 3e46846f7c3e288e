"""Which news waits a moment for the next: a training starts in steps that follow each other at once.

A service is seen at once by an operator that begins anew, and heard a moment later.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from arctic_operator.live import Live
from arctic_operator.observed import Inference, InferenceSeen, Training
from arctic_operator.plan.conditions import is_true


def settles(training: Training, status: Mapping[str, Any], live: Live | None) -> bool:
    """Whether a status tells only of a step between two: pods that get their nodes, a stream that is being opened.

    `status` is what is to be said now, and `live` how it stands with the stream. An edit, another state and trouble
    are told at once.
    """
    before = training.status
    if before.observed_generation != training.generation or before.attempt != status.get("attempt"):
        return False
    return _is_step(training, status, live)


def begins(training: Training, status: Mapping[str, Any], live: Live | None) -> bool:
    """Whether a status is a training's first, and tells only that its first world is being started."""
    told = training.status.observed_generation is not None
    return not told and status.get("attempt") == 1 and _is_step(training, status, live)


def _is_step(training: Training, status: Mapping[str, Any], live: Live | None) -> bool:
    before = training.status
    if is_true(before.conditions, "Degraded") or any(
        condition["type"] == "Degraded" and condition["status"] == "True" for condition in status["conditions"]
    ):
        return False
    if training.spec.start_deadline and before.start_time is None and status.get("startTime"):
        return False  # what is not written down does not count as begun
    starting = status["state"] == "Starting" and before.state in (None, "Starting")
    return starting or (status["state"] == "Running" and _is_opening(live))


def is_to_be_heard(inference: Inference, status: Mapping[str, Any], seen: InferenceSeen, ready: Iterable[str]) -> bool:
    """Whether a status may lack only what the leaders of groups that are `ready`, or the gateway, are about to say.

    An edit, another state and another number of groups are told at once.
    """
    before = inference.status
    known = (before.observed_generation, before.state, before.desired_replicas)
    if known != (status["observedGeneration"], status["state"], status["desiredReplicas"]):
        return False
    asked = inference.spec.autoscaling is not None and seen.held is None
    return asked or any(_is_opening(seen.live.get(name)) for name in ready)


def _is_opening(live: Live | None) -> bool:
    """Whether a stream is about to bring a first state."""
    return live is None or not (live.connected or live.error)
