"""Where a step waits for its device: the one list of it. Nothing else reads on the host what a device has computed."""

from enum import Enum
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

CPU = torch.device("cpu")


class Wait(Enum):
    """What the host needs from the device in the middle of the work, and why it can't do without."""

    EXPERT_ROWS = "how many rows each expert has: the shapes of its matmuls, where these are in a loop"
    POSITIONS = "under dynamic scaling, the greatest position of a call: it decides the angles, which the host computes"
    EXCHANGED_ROWS = "how many rows go to and come from each rank: an exchange is told so before it starts"
    STEP = "once a step, loss and wishes of all ranks: whether the training goes on"
    LOOK = "at most once a second, sums of all ranks since the last look: losses by source, how routers fare"
    HELD_OUT = "once a category and look, the held-out loss"
    TOKENS = "once a step of an engine, the chosen tokens: what the next step computes, and what clients are told"
    PROMPT = "logprobs of a prompt's own tokens, where a request asks for them: some rows of logits at a time"
    STATES = "once a step of a pipeline's rank, its hidden states: the next rank is in another pod, behind a socket"


def on_host(values: Tensor, wait: Wait) -> list[float]:  # noqa: ARG001 - names why it has to be
    """Return the values of a tensor [N], once the device has come to them."""
    return cast("list[float]", values.tolist())


def counts_on_host(counts: Tensor, wait: Wait) -> list[int]:
    """The same for whole numbers."""
    return [int(count) for count in on_host(counts, wait)]


def tensor_on_host(values: Tensor, wait: Wait) -> Tensor:  # noqa: ARG001 - names why it has to be
    """The same for a tensor that stays one."""
    return values.cpu()


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device; the host goes on at once.

    A copy from memory that can be paged out would wait for all that the device was given to do before.
    """
    return values if device.type == "cpu" else _pinned(values).to(device, non_blocking=True)


def fill(target: Tensor, values: Tensor) -> None:
    """Write a tensor of the host over one on a device; the host goes on at once."""
    target.copy_(values if target.device.type == "cpu" else _pinned(values), non_blocking=True)


def _pinned(values: Tensor) -> Tensor:
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values)


def shows_gpus(files: Path = Path("/dev")) -> bool:
    """Whether there are GPUs of NVIDIA's, by their device files: a container has those of its own, whatever numbers.

    No driver is asked: a process that has asked it can't be forked into others that compute there.
    """
    return any(files.glob("nvidia[0-9]*"))


def first_device() -> torch.device:
    """Return what this process computes on: its first GPU, of those that it sees, or the CPU where there is none."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else CPU
