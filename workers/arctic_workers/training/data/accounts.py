"""What became of each source: what was found in it, and how often it is read."""

from collections.abc import Iterable

from arctic_api.world import SourceReport
from arctic_workers.training.data.batches import TrainingData
from arctic_workers.training.data.streams import Prepared


class Accounts:
    """Of the sources that a run trains on.

    Args:
        prepared: the run's streams.
        data: its sequences.
        steps: of the whole run.
    """

    def __init__(self, prepared: Iterable[Prepared], data: TrainingData, steps: int) -> None:
        self._data = data
        self._planned = data.epochs(steps)
        self._content = {source.name: source.content() for source in prepared if source.name in self._planned}

    def at(self, step: int) -> list[SourceReport]:
        """Return the reports after `step` steps of the run, in the order of the manifest."""
        epochs = self._data.epochs(step)
        return [
            SourceReport(
                name=name,
                documents=content.documents,
                skipped=content.skipped,
                tokens=content.tokens,
                epochs=epochs[name],
                planned_epochs=self._planned[name],
                unused_splits=list(content.unused_splits),
            )
            for name, content in self._content.items()
        ]
