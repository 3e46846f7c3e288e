"""All that a trainer works with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arctic_api.training import ArcticTrainingSpec
from arctic_api.uris import uri_of
from arctic_api.world import TrainingWorld
from arctic_model.config import ArcticConfig
from arctic_workers.training.base import Base
from arctic_workers.training.books import Books
from arctic_workers.training.checkpoint.checkpointer import Checkpointer
from arctic_workers.training.checkpoint.store import CheckpointStore
from arctic_workers.training.curriculum import Curriculum
from arctic_workers.training.data.accounts import Accounts
from arctic_workers.training.data.batches import TrainingData
from arctic_workers.training.data.windows import Stream
from arctic_workers.training.desk import Desk
from arctic_workers.training.engine import Ranks
from arctic_workers.training.hang.pulse import Pulsing
from arctic_workers.training.memory import Room
from arctic_workers.training.traces import Traces


@dataclass(frozen=True)
class Workplace:
    """One rank's; made by `arctic_workers.training.rank`."""

    world: TrainingWorld
    ranks: Ranks
    config: ArcticConfig
    curriculum: Curriculum
    data: TrainingData
    room: Room
    held_out: Mapping[str, Stream]
    sources: Accounts
    engine: Any
    base: Base | None
    """What stands under an adapter; None where all weights are trained."""
    store: CheckpointStore
    checkpointer: Checkpointer
    desk: Desk
    pulsing: Pulsing
    books: Books
    traces: Traces

    @property
    def spec(self) -> ArcticTrainingSpec:
        """The manifest's."""
        return self.world.spec

    def uri(self, path: str) -> str:
        """Return how something in the run's folder is named to the outside: as the pods see it."""
        return uri_of(f"{self.world.run_folder}/{path}")
