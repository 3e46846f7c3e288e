"""What a step reads on the device beside weights and cache."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arctic_model.devices import on_device
from arctic_workers.inference.engines.native.cuda.adapters import AdaptedRows
from arctic_workers.inference.engines.native.cuda.attention import Attention, Extent, lay_out
from arctic_workers.inference.engines.native.step import Part


@dataclass(frozen=True)
class Inputs:
    """One step's, or where steps of a size are recorded those of the latest."""

    extent: Extent
    numbers: Tensor
    """As `lay_out` describes the step."""
    rows_2T: Tensor
    """int32: of which row a row takes the choice of experts, and its token.

    Rows that are nobody's take that of the last one that is somebody's: they make no expert's weights be read.
    """
    x_TD: Tensor | None
    """Hidden states of the pipeline rank before; None on the first."""
    adapted: AdaptedRows | None = None
    """Rows with an adapter."""


def describe(
    parts: Sequence[Part], extent: Extent, attention: Attention, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return `numbers` and `rows_2T` of a step, on their way to the device."""
    tokens = [token for part in parts for token in part.tokens]
    spare = extent.tokens - len(tokens)
    rows = [*range(len(tokens)), *[len(tokens) - 1] * spare]
    rows_2T = torch.tensor([rows, [*tokens, *[0] * spare]], dtype=torch.int32)
    return lay_out(parts, extent, attention).to(device, non_blocking=True), on_device(rows_2T, device)
