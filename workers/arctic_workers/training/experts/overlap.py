"""What a trainer has to do with the overlap: it says when a step begins and ends, and is told how well it went."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from arctic_model import devices
from arctic_model.devices import Wait
from arctic_rpc.control_pb2 import ExposedCommunication
from arctic_workers.training.experts.exposure import UPDATE, Flights, Share, Which, shares
from arctic_workers.training.experts.layer import ParallelExperts
from arctic_workers.training.experts.probe import Probe

log = logging.getLogger(__name__)


class Overlap:
    """The communication of a model's steps: in how many chunks experts exchange, and what of all is waited for.

    Args:
        model: with its layers of experts, if it has any.
        flights: where its exchanges are noted.
        device: of this rank.
    """

    def __init__(self, model: nn.Module, flights: Flights, device: torch.device) -> None:
        self._layers = [module for module in model.modules() if isinstance(module, ParallelExperts)]
        self._flights, self._device = flights, device
        self._probe = Probe(self._layers[0].chunks_to_try if self._layers else (1,))
        self.chunks = self._probe.candidates[0]
        """Of each layer's rows."""
        self.exposed: dict[Which, Share] = {}
        """Of the last step, on this rank; empty where nothing is exchanged, and on GPUs, where hosts don't wait."""

    @contextmanager
    def step(self) -> Iterator[None]:
        """Compute a step's gradients: its exchanges are looked at, and in its first steps their chunks are tried.

        Collective.
        """
        if self._probe.under_way:
            self.chunks = self._probe.current
        for layer in self._layers:
            layer.chunks = self.chunks
        self._take()  # what was in flight since the last step was no part of any
        began = time.monotonic()
        yield
        self.exposed = self._take()
        if self._probe.under_way:
            self._probe.note(time.monotonic() - began)
            if not self._probe.under_way:
                self._choose()

    @contextmanager
    def update(self) -> Iterator[None]:
        """Make the update of the last step's gradients, which is a part of that step."""
        with self._flights.blocking(UPDATE):
            yield
        self.exposed |= self._take()

    def _take(self) -> dict[Which, Share]:
        flights = self._flights.take()
        return shares(flights) if self._device.type == "cpu" else {}

    def _choose(self) -> None:
        seconds = torch.tensor(self._probe.medians(), dtype=torch.float64, device=self._device)
        dist.all_reduce(seconds)
        self.chunks = self._probe.choice(devices.on_host(seconds, Wait.STEP))
        if dist.get_rank() == 0:
            log.info("experts exchange their rows in %d chunks", self.chunks)

    def told(self) -> list[ExposedCommunication]:
        """Return `exposed` in the words of the control protocol."""
        return [
            ExposedCommunication(
                layer=which.layer,
                kind=which.kind,
                backward=which.backward,
                in_flight_seconds=share.in_flight,
                exposed_seconds=share.exposed,
            )
            for which, share in self.exposed.items()
        ]

    def written(self) -> list[dict[str, Any]]:
        """Return `exposed` in the words of the run's journal."""
        return [which._asdict() | share._asdict() for which, share in self.exposed.items()]
