"""Loss on text that is never trained on, in the same batches whatever the number of ranks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from arctic_model import devices
from arctic_model.devices import Wait
from arctic_workers.training.data.batches import held_out_windows
from arctic_workers.training.data.windows import IGNORED, MicroBatch, Stream
from arctic_workers.training.engine import Ranks

STEPS = 2
"""Held-out text that one look takes, at most, in steps of the training: a look must stay cheap beside a stage."""


class HeldOut:
    """A model under training as `arctic_workers.evaluation` sees it.

    Args:
        module: the `LossModule` of this rank.
        ranks: the world.
        streams: held-out token streams by source.
        sequence_length: tokens of each sequence that is looked at.
        tokens_per_step: tokens of one step of the training.
        micro_batch: sequences that a rank computes at once.
    """

    def __init__(
        self,
        module: Any,
        ranks: Ranks,
        streams: Mapping[str, Stream],
        sequence_length: int,
        tokens_per_step: int,
        micro_batch: int,
    ) -> None:
        self._module = module
        self._ranks = ranks
        self._streams = streams
        self._length = sequence_length
        self._most = max(1, STEPS * tokens_per_step // sequence_length)
        self._micro_batch = micro_batch
        self._losses: dict[str, float] = {}

    @property
    def categories(self) -> Sequence[str]:
        """Categories of which there is held-out text that can be judged, in alphabetical order."""
        return sorted({stream.category for stream in self._streams.values() if stream.judged(self._length)})

    def held_out_loss(self, category: str) -> float:
        """Return the mean cross-entropy, in nats a token, on held-out text of a category. Collective.

        Computed once for each category: a subject is the model as it is now.
        """
        if category not in self._losses:
            self._losses[category] = self._measure(category)
        return self._losses[category]

    def _measure(self, category: str) -> float:
        windows = held_out_windows(self._streams, category, self._length, self._most)
        total = torch.zeros(2, dtype=torch.float64, device=self._ranks.device)
        stride = self._ranks.readers * self._micro_batch
        self._module.eval()
        with torch.no_grad():
            for start in range(self._ranks.reader * self._micro_batch, _round_up(len(windows), stride), stride):
                # Ranks that have no window left compute one that does not count: experts need all ranks.
                chosen = [min(start + i, len(windows) - 1) for i in range(self._micro_batch)]
                rows = MicroBatch.of([windows[i] for i in chosen])
                for i in range(len(chosen)):
                    if start + i >= len(windows):
                        rows.labels[i] = IGNORED
                total += self._module.loss_and_targets(rows).double()
        self._module.train()
        dist.all_reduce(total)
        loss, count = devices.on_host(total, Wait.HELD_OUT)
        return loss / count


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
