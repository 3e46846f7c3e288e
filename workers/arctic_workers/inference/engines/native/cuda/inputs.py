"""What a step reads on the device beside weights and cache."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arctic_workers.inference.engines.native.cuda.adapters import AdaptedRows
from arctic_workers.inference.engines.native.cuda.attention import Attention, Extent, lay_out
from arctic_workers.inference.engines.native.step import Part


@dataclass(frozen=True)
class Inputs:
    """One step's, or where steps of a size are recorded those of the latest."""

    extent: Extent
    numbers: Tensor
    """As `describe` has them."""
    x_TD: Tensor | None
    """Hidden states of the pipeline rank before; None on the first."""
    adapted: AdaptedRows | None = None
    """Rows with an adapter."""

    @property
    def rows(self) -> Tensor:
        """int32 [2, T]: of which row a row takes the choice of experts, and its token.

        Rows that are nobody's take that of the last one that is somebody's: they make no expert's weights be read.
        """
        return self.numbers[self.extent.numbers :].view(2, self.extent.tokens)


def size_of(extent: Extent) -> int:
    """Return how many numbers `describe` gives."""
    return extent.numbers + 2 * extent.tokens


def describe(parts: Sequence[Part], extent: Extent, attention: Attention) -> Tensor:
    """Describe a step on the host, for one copy to the device: int32, what `lay_out` gives, then `Inputs.rows`."""
    tokens = [token for part in parts for token in part.tokens]
    spare = extent.tokens - len(tokens)
    rows = [*range(len(tokens)), *[len(tokens) - 1] * spare, *tokens, *[0] * spare]
    return torch.cat((lay_out(parts, extent, attention), torch.tensor(rows, dtype=torch.int32)))
