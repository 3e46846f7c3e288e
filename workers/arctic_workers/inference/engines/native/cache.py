"""Paged keys and values, and the attention of a step's ragged batch over them.

Shapes are named by the legend of `arctic_model.layers`; besides: X independent attentions (sequences times key-value
heads), Q queries of a sequence, C keys, M query rows of one attention (queries times the heads that share its keys).
"""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from arctic_model import fp8
from arctic_model.devices import CPU
from arctic_model.layers import Rotation, rotate, rotation_of
from arctic_workers.inference.engines.native.invariant import pad_rows
from arctic_workers.inference.engines.native.step import Part
from arctic_workers.inference.engines.native.window import Window

QUERIES = 128
"""Most queries of one sequence that attend at once: bounds the memory of the scores."""
KEYS = 64
"""Keys are taken in so many, from positions that are multiples: so a token's sum has the same order in any batch."""


class _Vectors:
    """Keys, or values: `numbers` [layers, G, slots, H], and in FP8 `scales` [layers, G, slots]."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.numbers = _zeros(shape, dtype, device)
        self.scales = _zeros(shape[:-1], torch.float32, device) if dtype == fp8.DTYPE else None

    def write(self, index: int, slots_T: Tensor, x_GTH: Tensor) -> None:
        if self.scales is None:
            self.numbers[index][:, slots_T] = x_GTH.to(self.numbers.dtype)
            return
        values, scale = fp8.quantize(x_GTH)
        self.numbers[index].view(torch.uint8)[:, slots_T] = values.view(torch.uint8)  # few operations know e4m3
        self.scales[index][:, slots_T] = scale

    def read(self, index: int, tables_BP: Tensor, block_size: int) -> Tensor:
        """Return copies of what is in some blocks, in fp32: [G, B, C, H]."""

        def gather(stored: Tensor) -> Tensor:
            heads, _, size = stored.shape
            by_block = stored.view(heads, -1, block_size * size)
            return by_block.index_select(1, tables_BP.flatten()).view(heads, len(tables_BP), -1, size)

        if self.scales is None:
            return gather(self.numbers[index]).float()
        values = gather(self.numbers[index].view(torch.uint8)).view(fp8.DTYPE)
        return fp8.dequantize(values, gather(self.scales[index][..., None])[..., 0])


class PagedCache:
    """Keys and values of the layers of one rank: for each, and each key-value head, `blocks * block_size` slots [H].

    In FP8 each vector of them has a scale of its own: small ones keep their digits, and neighbours don't matter.
    """

    def __init__(
        self,
        layers: range,
        *,
        blocks: int,
        block_size: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        window: Window | None = None,
        device: torch.device = CPU,
    ) -> None:
        if KEYS % block_size:
            raise ValueError(f"a block of {block_size} tokens does not divide {KEYS}")
        self.block_size = block_size
        self.window = window
        """What attention sees; None for all."""
        self.device = device
        """Where it is, and what computes with it."""
        self._first = layers.start
        self._keys, self._values = (
            _Vectors((len(layers), heads, blocks * block_size, head_dim), dtype, device) for _ in range(2)
        )

    @property
    def dtype(self) -> torch.dtype:
        """Format of what is kept."""
        return self._keys.numbers.dtype

    @property
    def slots_of_a_head(self) -> int:
        """Tokens that all blocks hold."""
        return self._keys.numbers.shape[2]

    def tensors(self, layer: int) -> dict[str, Tensor]:
        """Return `keys` and `values` of a layer, [G, slots, H], and in FP8 `key_scales` and `value_scales`, [G, slots].

        In other formats there are none of these.
        """
        index = layer - self._first
        kept = {"keys": self._keys.numbers, "values": self._values.numbers}
        if self._keys.scales is not None and self._values.scales is not None:
            kept |= {"key_scales": self._keys.scales, "value_scales": self._values.scales}
        return {name: tensor[index] for name, tensor in kept.items()}

    def block(self, part: Part, index: int) -> int:
        """Return which block holds a sequence's tokens from `index * block_size` on.

        Where the table has none, block 0 stands for what is not there.
        """
        sinks = 0 if self.window is None else self.window.sink_blocks(self.block_size)
        place = index if index < sinks else index - part.dropped
        there = place < len(part.blocks) and (index < sinks or place >= sinks)
        return part.blocks[place] if there else 0

    def slots(self, part: Part) -> list[int]:
        """Return the slots of a part's tokens."""
        size = self.block_size
        return [self.block(part, position // size) * size + position % size for position in range(part.start, part.end)]

    def write(self, layer: int, slots_T: Tensor, k_TGH: Tensor, v_TGH: Tensor) -> None:
        """Store keys and values of a step."""
        index = layer - self._first
        self._keys.write(index, slots_T, k_TGH.transpose(0, 1))
        self._values.write(index, slots_T, v_TGH.transpose(0, 1))

    def read(self, layer: int, tables_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies of the keys and values in some blocks of each sequence, in fp32: [G, B, C, H] each."""
        index = layer - self._first
        size = self.block_size
        return self._keys.read(index, tables_BP, size), self._values.read(index, tables_BP, size)


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On a CPU they take memory as they are written, near the thread that does: `torch.zeros` writes to all of it."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(shape)


@dataclass(frozen=True)
class _Tile:
    """Sequences with the same number of queries in a step, which attend together."""

    rows_BQ: Tensor
    """Where the queries are in the step."""
    tables_BP: Tensor
    """In which blocks of the cache the keys are: those of the sinks, then those from a multiple of `KEYS` on."""
    visible_BQC: Tensor
    """Which of these keys each query sees."""
    sinks: int = 0
    """How many of the keys are in the sinks' blocks, to be met apart; 0 where nobody does."""
    sink_rotation: Rotation | None = None
    """Turns queries back by what was dropped between sinks and window: [B, Q, H]."""


class PagedAttend:
    """The `Attend` of one step: writes the step's keys and values, then attends over all that each sequence has."""

    def __init__(self, cache: PagedCache, parts: Sequence[Part], frequencies_H2: Tensor | None = None) -> None:
        """`frequencies_H2` are those of the rotary positions, in radians a position: sinks need them."""
        self._cache = cache
        slots = [slot for part in parts for slot in cache.slots(part)]
        self._slots_T = torch.tensor(slots)
        self._tiles = [_tile(cache, queries, frequencies_H2) for queries in _queries(parts)]

    def __call__(self, layer: int, q_BTNH: Tensor, k_BTGH: Tensor, v_BTGH: Tensor) -> Tensor:
        """See `Attend`; the step is one batch of all tokens, [1, T, ...]."""
        self._cache.write(layer, self._slots_T, k_BTGH[0], v_BTGH[0])
        out_TNH = torch.empty_like(q_BTNH[0])
        for tile in self._tiles:
            k_GBCH, v_GBCH = self._cache.read(layer, tile.tables_BP)
            q_BQNH = q_BTNH[0, tile.rows_BQ]
            sink_q_BQNH = None if tile.sink_rotation is None else rotate(q_BQNH, tile.sink_rotation)
            out_TNH[tile.rows_BQ] = attend(q_BQNH, k_GBCH, v_GBCH, tile.visible_BQC, sink_q_BQNH, tile.sinks)
        return out_TNH[None]


def attend(
    q_BQNH: Tensor,
    k_GBCH: Tensor,
    v_GBCH: Tensor,
    visible_BQC: Tensor,
    sink_q_BQNH: Tensor | None = None,
    sinks: int = 0,
) -> Tensor:
    """Scaled dot-product attention of each query over the visible keys of its sequence: [B, Q, N, H], fp32.

    With `sink_q_BQNH`, these are the queries that meet the first `sinks` keys.

    To the last bit the same whatever B, Q and C are: scores and softmax do not depend on them, and the weighted sum
    runs over blocks of `KEYS` in order, to which hidden keys add exact zeros. Values that nobody sees are overwritten
    with zeros.
    """
    batch, queries, heads, size = q_BQNH.shape
    groups, _, keys, _ = k_GBCH.shape
    rows = queries * (heads // groups)

    def by_group(x_BQNH: Tensor) -> Tensor:
        """Queries as padded rows [X, M, H]."""
        x_GBQRH = x_BQNH.view(batch, queries, groups, -1, size).permute(2, 0, 1, 3, 4)
        return pad_rows(x_GBQRH.reshape(groups * batch, rows, size))

    def by_query(x_XM: Tensor) -> Tensor:
        """View padded rows [X, M, n] as [G, B, Q, R, n], R heads that share keys."""
        return x_XM[:, :rows].view(groups, batch, queries, heads // groups, -1)

    # What a freed block still holds must not reach anybody: a hidden NaN times zero is a NaN.
    v_GBCH.masked_fill_(~visible_BQC.any(1)[..., None], 0.0)
    q_XMH = by_group(q_BQNH)
    k_XCH, v_XCH = k_GBCH.flatten(0, 1), v_GBCH.flatten(0, 1)
    scores_XMC = torch.bmm(q_XMH, k_XCH[:, sinks:].transpose(1, 2))
    if sink_q_BQNH is not None:
        met_XMC = torch.bmm(by_group(sink_q_BQNH), k_XCH[:, :sinks].transpose(1, 2))
        scores_XMC = torch.cat((met_XMC, scores_XMC), dim=-1)
    scores_XMC *= size**-0.5
    by_query(scores_XMC).masked_fill_(~visible_BQC[:, :, None], -torch.inf)
    weights_XMC = torch.softmax(scores_XMC, dim=-1)
    out_XMH = torch.zeros_like(q_XMH)
    for first in range(0, keys, KEYS):
        out_XMH += torch.bmm(weights_XMC[..., first : first + KEYS], v_XCH[:, first : first + KEYS])
    return by_query(out_XMH).permute(1, 2, 0, 3, 4).flatten(2, 3)


@dataclass(frozen=True)
class _Query:
    """Consecutive tokens of a part."""

    row: int
    """Of the first, in the step."""
    part: Part
    start: int
    end: int
    """Positions."""


def _queries(parts: Sequence[Part]) -> Iterator[list[_Query]]:
    """Cut a step: at most `QUERIES` tokens of a longer part at a time; last the single ones, those of sequences of
    about the same length together, as all of them get copies of as many keys as the longest.
    """
    single: dict[int, list[_Query]] = {}
    row = 0
    for part in parts:
        if len(part.tokens) == 1:
            single.setdefault((part.end // KEYS).bit_length(), []).append(_Query(row, part, part.start, part.end))
        else:
            for start in range(part.start, part.end, QUERIES):
                yield [_Query(row + start - part.start, part, start, min(start + QUERIES, part.end))]
        row += len(part.tokens)
    yield from single.values()


def _tile(cache: PagedCache, queries: Sequence[_Query], frequencies_H2: Tensor | None) -> _Tile:
    """Lay out queries of the same length."""
    window, size = cache.window, cache.block_size
    positions_BQ = torch.tensor([range(query.start, query.end) for query in queries])
    firsts = [0 if window is None else window.first(query.start) // KEYS * KEYS for query in queries]
    count = max(-(-(query.end - first) // KEYS) for query, first in zip(queries, firsts, strict=True)) * KEYS
    keys_BC = torch.tensor(firsts)[:, None] + torch.arange(count)
    visible_BQC = keys_BC[:, None] <= positions_BQ[..., None]
    sinks = 0
    rotation = None
    if window is not None:
        firsts_BQ = positions_BQ - window.size + 1
        moved_BQ = firsts_BQ > window.sinks
        visible_BQC &= (keys_BC[:, None] >= firsts_BQ[..., None]) | ~moved_BQ[..., None]
        if frequencies_H2 is not None and window.sinks and bool(moved_BQ.any()):
            sinks = -(-window.sinks // KEYS) * KEYS
            seen_BQC = moved_BQ[..., None] & (torch.arange(sinks) < window.sinks)
            visible_BQC = torch.cat((seen_BQC, visible_BQC), dim=-1)
            rotation = rotation_of((window.sinks - firsts_BQ).clamp(max=0), frequencies_H2)
    indices = [(*range(sinks // size), *range(first // size, (first + count) // size)) for first in firsts]
    tables = [
        [cache.block(query.part, index) for index in of_query] for query, of_query in zip(queries, indices, strict=True)
    ]
    return _Tile(
        rows_BQ=torch.tensor([range(query.row, query.row + query.end - query.start) for query in queries]),
        tables_BP=torch.tensor(tables),
        visible_BQC=visible_BQC,
        sinks=sinks,
        sink_rotation=rotation,
    )
