"""Where a step waits for its device: the one list of it. Nothing else reads on the host what a device has computed."""

from enum import Enum
from typing import cast

from torch import Tensor


class Wait(Enum):
    """What the host needs from the device in the middle of the work, and why it can't do without."""

    EXPERT_ROWS = "how many rows each expert has: the shapes of its matmuls"
    EXCHANGED_ROWS = "how many rows go to and come from each rank: an exchange is told so before it starts"
    STEP = "once a step, loss and wishes of all ranks: whether the training goes on"
    LOOK = "at most once a second, sums of all ranks since the last look: losses by source, how routers fare"
    HELD_OUT = "once a category and look, the held-out loss"


def on_host(values: Tensor, wait: Wait) -> list[float]:  # noqa: ARG001 - names why it has to be
    """Return the values of a tensor [N], once the device has come to them."""
    return cast("list[float]", values.tolist())


def counts_on_host(counts: Tensor, wait: Wait) -> list[int]:
    """The same for whole numbers."""
    return [int(count) for count in on_host(counts, wait)]
