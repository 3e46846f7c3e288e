"""One all-to-all of rows between the ranks that share out the experts: started in one place, waited for in another."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import deepspeed.comm as dist
from torch import Tensor

from arctic_workers.training.experts.exposure import Flight, Flights

Kind = Literal["counts", "dispatch", "combine"]
"""How many rows will come; rows on their way to experts; results on their way back."""


@dataclass
class Exchange:
    """Rows of one chunk on their way, and in the backward pass their gradients on the way back.

    With no group there is one rank: rows are where they have to be.
    """

    layer: int
    kind: Kind
    group: Any
    sent: list[int]
    """Rows to each rank."""
    received: list[int]
    """Rows from each rank."""
    flights: Flights
    _work: Any = field(default=None, init=False)
    _flight: Flight | None = field(default=None, init=False)
    _buffers: tuple[Tensor, Tensor] | None = field(default=None, init=False)

    def launch(self, rows: Tensor, into: Tensor | None = None) -> None:
        """Start sending `rows` [sum of sent, D]; what comes is put into `into` [sum of received, D], if that is given.

        With one rank nothing is put anywhere.
        """
        self._launch(rows, into, self.sent, self.received, backward=False)

    def launch_back(self, gradients: Tensor, into: Tensor | None = None) -> None:
        """Start sending the gradients of what was received to where it came from; as `launch`."""
        self._launch(gradients, into, self.received, self.sent, backward=True)

    def _launch(
        self, rows: Tensor, into: Tensor | None, sent: list[int], received: list[int], *, backward: bool
    ) -> None:
        if self.group is None:
            self._buffers = rows, rows
            return
        arriving = rows.new_empty(sum(received), rows.shape[1]) if into is None else into
        self._flight = self.flights.launched(self.layer, self.kind, backward=backward)
        self._work = dist.all_to_all_single(arriving, rows, received, sent, group=self.group, async_op=True)
        if rows.device.type == "cpu":  # elsewhere it would be the launch that is noted
            self.flights.watch(self._flight, self._work)
        self._buffers = arriving, rows  # both must live until the exchange is done

    def wait(self, meanwhile: Callable[[], bool] | None = None) -> Tensor:
        """Return what has arrived.

        `meanwhile` does a piece of other work and says whether there was any; it is called while nothing has arrived.
        With rows on a GPU nobody can say when that is: NCCL has a stream of its own, and what waits is the stream of
        all other work, behind what was launched before. There all of the other work is launched, whatever has arrived.
        """
        assert self._buffers is not None, "wait() without launch()"
        if self._work is not None:
            on_gpu = self._buffers[0].device.type == "cuda"
            while meanwhile is not None and (on_gpu or not self._work.is_completed()) and meanwhile():
                pass
            assert self._flight is not None
            with self.flights.waiting(self._flight):
                self._work.wait()
        arriving = self._buffers[0]
        self._work = self._buffers = self._flight = None
        return arriving
