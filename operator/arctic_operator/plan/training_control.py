"""What a running training is told: what its manifest says, where its workers say otherwise of themselves."""

from arctic_api.training import CheckpointRequest
from arctic_operator.live import Phase, TrainingObservation
from arctic_operator.observed import Training
from arctic_operator.plan.actions import Command

LISTENING = (Phase.RUNNING, Phase.PAUSED)
"""Phases in which a world looks at commands between its steps."""


def commands(
    training: Training, seen: TrainingObservation | None, answer: CheckpointRequest | None
) -> tuple[Command, ...]:
    """Return what to tell a world. `seen` is what it says of itself now, None if it says nothing."""
    if seen is None or seen.phase not in LISTENING:
        return ()
    spec, told = training.spec, []
    if spec.paused != (seen.phase == Phase.PAUSED):
        told.append(Command("pause" if spec.paused else "resume"))
    if (spec.stop_after or "") != seen.stop_after:
        told.append(Command("stop_after", spec.stop_after or ""))
    token = training.checkpoint_request
    if token and token not in (answered.token for answered in (training.status.checkpoint_request, answer) if answered):
        told.append(Command("checkpoint", token))
    return tuple(told)


def answered_request(training: Training, answer: CheckpointRequest | None) -> CheckpointRequest | None:
    """Return the answer to the newest request, or to the one before it while that is not done yet."""
    if answer and answer.token == training.checkpoint_request:
        return answer
    return training.status.checkpoint_request
