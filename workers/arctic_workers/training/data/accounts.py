"""What became of each source: what was found in it, and how often it is read."""

import logging
from collections.abc import Iterable

from arctic_api.training import Source
from arctic_api.world import SourceReport
from arctic_workers.training.data.batches import TrainingData
from arctic_workers.training.data.streams import Prepared
from arctic_workers.training.errors import Refused

log = logging.getLogger(__name__)


class Accounts:
    """Of the sources that a run trains on, and of those that are only for validation: these are never read again.

    Args:
        prepared: the run's streams.
        data: its sequences.
        steps: of the whole run.
    """

    def __init__(self, prepared: Iterable[Prepared], data: TrainingData, steps: int) -> None:
        self._data = data
        self._planned = data.epochs(steps)
        self._content = {source.name: source.content() for source in prepared}

    def check(self, sources: Iterable[Source], leader: bool) -> None:
        """Say of which sources there is too little, and refuse those that may not be read twice.

        Args:
            sources: of the manifest.
            leader: whether this rank speaks for all.
        """
        for source in sources:
            planned = self._planned.get(source.name, 0.0)
            if planned <= 1:
                continue
            there = (
                f"source {source.name} has {self._content[source.name].tokens} tokens to train on, and the curriculum "
                f"reads them {planned:.2f} times"
            )
            if source.when_exhausted == "refuse":
                raise Refused("SourceExhausted", f"{there}: give it less weight or fewer tokens, or let it repeat")
            if leader:
                log.warning("%s", there)

    def at(self, step: int) -> list[SourceReport]:
        """Return the reports after `step` steps of the run, in the order of the manifest."""
        epochs = self._data.epochs(step)
        return [
            SourceReport(
                name=name,
                documents=content.documents,
                skipped=content.skipped,
                tokens=content.tokens,
                epochs=epochs.get(name, 0.0),
                planned_epochs=self._planned.get(name, 0.0),
                unused_splits=list(content.unused_splits),
            )
            for name, content in self._content.items()
        ]
