"""Steps in which every sequence has one token, recorded as CUDA graphs: one launch in place of hundreds.

A graph computes with the addresses and the grids that it was recorded with. So each size of step has memory of its own
for what it reads, all of which is written before the graph runs, and what the graph returns is copied: nobody holds
what the next step overwrites.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from arctic_model.devices import fill
from arctic_workers.inference.engines.native.cuda.attention import Attention, Extent
from arctic_workers.inference.engines.native.cuda.inputs import Inputs, describe, size_of
from arctic_workers.inference.engines.native.cuda.streams import Recorder
from arctic_workers.inference.engines.native.step import Part

FEWEST_BLOCKS = 64
"""Of the longest table of a recorded step: shorter ones are computed as of so many."""


class Graphs:
    """Runs such steps: the first of a size as any other, and all later ones from what was recorded then."""

    def __init__(self, compute: Callable[[Inputs], Tensor], attention: Attention, device: torch.device) -> None:
        self._compute = compute
        self._attention = attention
        self._device = device
        self._recorder = Recorder(device)
        self._recorded: dict[tuple[Extent, bool], tuple[Inputs, Callable[[], Tensor]]] = {}
        """By size, and whether hidden states come in."""

    def run(self, parts: Sequence[Part], x_TD: Tensor | None) -> Tensor:
        """Return the step's hidden states, [T, D]; `x_TD` is as in `Compute.run`."""
        extent = _extent(parts)
        kind = extent, x_TD is not None
        if kind in self._recorded:
            inputs, replay = self._recorded[kind]
            self._fill(inputs, parts, x_TD)
            return replay()[: len(parts)].clone()
        inputs = self._empty(extent, x_TD)
        self._fill(inputs, parts, x_TD)
        computed_TD = self._compute(inputs)
        self._recorded[kind] = inputs, self._recorder.record(lambda: self._compute(inputs))
        return computed_TD[: len(parts)]

    def _empty(self, extent: Extent, x_TD: Tensor | None) -> Inputs:
        """Take the memory for what steps of a size read."""
        return Inputs(
            extent,
            torch.empty(size_of(extent), dtype=torch.int32, device=self._device),
            None if x_TD is None else x_TD.new_empty((extent.tokens, x_TD.shape[1])),
        )

    def _fill(self, inputs: Inputs, parts: Sequence[Part], x_TD: Tensor | None) -> None:
        """Write a step over the last one, rows that are nobody's as well."""
        fill(inputs.numbers, describe(parts, inputs.extent, self._attention))
        if x_TD is not None and inputs.x_TD is not None:
            inputs.x_TD[: len(parts)] = x_TD
            inputs.x_TD[len(parts) :].zero_()


def _extent(parts: Sequence[Part]) -> Extent:
    """Return the size that a step of singles is computed as: powers of two, so that sizes are few."""
    blocks = max(FEWEST_BLOCKS, *(len(part.blocks) for part in parts))
    return Extent.of_singles(_power_of_two(len(parts)), _power_of_two(blocks))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
