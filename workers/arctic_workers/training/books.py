"""The books of an attempt: how fast it is, where its time goes, how its routers fare; looked at now and then."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from arctic_api.common import parse_duration
from arctic_api.world import TrainingWorld
from arctic_model import devices
from arctic_model.config import ArcticConfig
from arctic_model.cost import model_flops_utilization
from arctic_model.devices import Wait
from arctic_rpc.control_pb2 import RouterState, TrainingState
from arctic_workers.training.accounts import COMMUNICATION, Rate, TimeParts
from arctic_workers.training.curriculum import StagePlan
from arctic_workers.training.engine import LossModule, Ranks
from arctic_workers.training.experts import Overlap
from arctic_workers.training.journal import Entry, Journal
from arctic_workers.training.progress import now
from arctic_workers.training.tally import Look, Tally
from arctic_workers.training.tracking import close_trackers, open_trackers

log = logging.getLogger(__name__)

Keep = Callable[[Callable[[], None]], None]
LOOK_SECONDS = 1.0
"""Least time between two looks, each of which is a line of the journal: a run of months stays readable."""


@dataclass
class Measures:
    """What the last step was like."""

    loss: float = float("nan")
    learning_rate: float = 0.0
    gradient_norm: float = 0.0


class Books:
    """One rank's books; the leader's are those that are read.

    Args:
        world, ranks, config: of the training.
        module: the model with its loss.
        peak_flops: of all devices together, a second; 0 where nobody knows.
        folder: of the run, where the leader keeps the journal.
    """

    def __init__(
        self,
        world: TrainingWorld,
        ranks: Ranks,
        config: ArcticConfig,
        module: LossModule,
        peak_flops: float,
        folder: Path,
    ) -> None:
        self.parts = TimeParts()
        self.tally = Tally(module, [source.name for source in world.spec.data.sources], ranks.device)
        self.overlap = Overlap(module, module.flights, ranks.device)
        self._rate = Rate()
        self._world, self._ranks, self._config = world, ranks, config
        self._peak_flops = peak_flops
        self._folder = folder
        self._journal: Journal | None = None
        self._trackers = open_trackers(world, folder) if ranks.leader else []
        self._looked = time.monotonic()
        self._look = Look()
        self._sequence_length = 1

    def begin(self, step: int, keep: Keep) -> None:
        """Begin, or go on after the run has gone back: from a step of the run.

        `keep` is called with what writes to the run's folder, which may have no room for it.
        """
        self._rate.clear()
        self.tally.begin(step)
        if self._ranks.leader:
            keep(lambda: self._open(step))

    def _open(self, step: int) -> None:
        before, self._journal = self._journal, Journal(self._folder, step)
        if before is not None:
            before.close()

    @property
    def due(self) -> bool:
        """Whether the leader wants to look."""
        return self._ranks.leader and time.monotonic() - self._looked >= LOOK_SECONDS

    def stepped(self, stage: StagePlan, tokens: int) -> None:
        """Take in a step of a stage, with which so many tokens are trained."""
        self._rate.note(time.monotonic(), tokens)
        self._sequence_length = stage.spec.sequence_length

    def interrupted(self) -> None:
        """Note that what comes next does not follow at once on the last step."""
        self._rate.clear()

    def tokens_per_second(self) -> float:
        """Return tokens a second of the whole world, over the last steps."""
        return self._rate.per_second()

    def mfu(self) -> float:
        """Return the utilization of the devices' peak, 0 where that is not known."""
        if not self._peak_flops:
            return 0.0
        return model_flops_utilization(
            self._config,
            sequence_length=self._sequence_length,
            tokens_per_second=self.tokens_per_second(),
            peak_flops=self._peak_flops,
            frozen=self._world.spec.model.adapter is not None,
        )

    def look(
        self, stage: StagePlan, step: int, tokens: int, measures: Measures, epochs: Mapping[str, float], keep: Keep
    ) -> None:
        """Sum up over all ranks what happened since the last look, and write it down. Collective."""
        self._looked = time.monotonic()
        self._look = self.tally.look(step, self._add_up)
        if self._journal is None:
            return
        entry = Entry(
            time=now(),
            attempt=self._world.epoch,
            stage=stage.name,
            step=step,
            tokens=tokens,
            **asdict(measures),
            tokens_per_second=self.tokens_per_second(),
            mfu=self.mfu(),
            seconds=self._seconds(),
            loss_by_source=self._look.loss_by_source,
            epochs=epochs,
            routers=[asdict(router) for router in self._look.routers],
            exposed_communication=self.overlap.written(),
            expert_chunks=self.overlap.chunks,
        )
        journal = self._journal
        keep(lambda: journal.write(entry))
        for tracker in self._trackers:
            tracker.log(entry.step, dict(entry.scalars()))

    def close(self) -> None:
        """Write no more."""
        close_trackers(self._trackers, parse_duration(self._world.spec.checkpoint.grace_period))
        if self._journal is not None:
            self._journal.close()

    def _add_up(self, sums: Tensor) -> Sequence[float]:
        with self.parts.of(COMMUNICATION):
            dist.all_reduce(sums)
        return devices.on_host(sums, Wait.LOOK)

    def _seconds(self) -> dict[str, float]:
        """Return the seconds of each part; collectives only begin where a GPU's rank looks at the clock."""
        seconds = self.parts.seconds()
        if self._ranks.device.type == "cuda":
            del seconds[COMMUNICATION]
        return seconds

    def tell(self, state: TrainingState) -> None:
        """Add what the books say to a state that is published."""
        state.tokens_per_second = self.tokens_per_second()
        state.mfu = self.mfu()
        state.seconds.update(self._seconds())
        state.loss_by_source.update(self._look.loss_by_source)
        state.exposed_communication.extend(self.overlap.told())
        state.expert_chunks = self.overlap.chunks
        state.routers.extend(
            RouterState(
                layer=router.layer,
                load=router.load,
                entropy=router.entropy,
                dead=router.dead,
                dropped=router.dropped,
            )
            for router in self._look.routers
        )
