"""Paged keys and values, and the attention of a step's ragged batch over them.

Shapes are named by the legend of `arctic_model.layers`; besides: X independent attentions (sequences times key-value
heads), Q queries of a sequence, C keys, M query rows of one attention (queries times the heads that share its keys).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arctic_workers.inference.engines.native.invariant import pad_rows
from arctic_workers.inference.engines.native.step import Part

QUERIES = 128
"""Most queries of one sequence that attend at once: bounds the memory of the scores."""
KEYS = 64
"""Keys are taken in so many, from the first position on: so a token's sum has the same order in any batch."""


class PagedCache:
    """Keys and values of the layers of one rank: for each, and each key-value head, `blocks * block_size` slots [H]."""

    def __init__(
        self, layers: range, *, blocks: int, block_size: int, heads: int, head_dim: int, dtype: torch.dtype
    ) -> None:
        if KEYS % block_size:
            raise ValueError(f"a block of {block_size} tokens does not divide {KEYS}")
        self.block_size = block_size
        self._first = layers.start
        # Zeros come from the kernel untouched, so memory is taken only when slots are written.
        self._keys = torch.zeros(len(layers), heads, blocks * block_size, head_dim, dtype=dtype)
        self._values = torch.zeros_like(self._keys)

    @property
    def dtype(self) -> torch.dtype:
        """Format of what is kept."""
        return self._keys.dtype

    @property
    def slots_of_a_head(self) -> int:
        """Tokens that all blocks hold."""
        return self._keys.shape[2]

    def pointers(self, layer: int) -> tuple[int, int]:
        """Return where the keys and values of a layer are, [G, slots, H] each."""
        index = layer - self._first
        return self._keys[index].data_ptr(), self._values[index].data_ptr()

    def slots(self, blocks: Sequence[int], start: int, end: int) -> list[int]:
        """Return the slots of positions `start` to `end` of a sequence with that block table."""
        size = self.block_size
        return [blocks[position // size] * size + position % size for position in range(start, end)]

    def write(self, layer: int, slots_T: Tensor, k_TGH: Tensor, v_TGH: Tensor) -> None:
        """Store keys and values of a step."""
        index = layer - self._first
        self._keys[index][:, slots_T] = k_TGH.transpose(0, 1).to(self._keys.dtype)
        self._values[index][:, slots_T] = v_TGH.transpose(0, 1).to(self._values.dtype)

    def read(self, layer: int, tables_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies of the keys and values in some blocks of each sequence, in fp32: [G, B, C, H] each."""
        index = layer - self._first
        return self._gather(self._keys[index], tables_BP), self._gather(self._values[index], tables_BP)

    def _gather(self, stored: Tensor, tables_BP: Tensor) -> Tensor:
        heads, slots, size = stored.shape
        by_block = stored.view(heads, slots // self.block_size, self.block_size * size)
        return by_block.index_select(1, tables_BP.flatten()).float().view(heads, len(tables_BP), -1, size)

    def tables(self, tables: Sequence[Sequence[int]], end: int) -> Tensor:
        """Return the blocks that hold positions 0 to `end`, rounded up to a multiple of `KEYS`: [B, blocks].

        Where a table is shorter, block 0 stands for what is not there.
        """
        count = -(-end // KEYS) * KEYS // self.block_size
        return torch.tensor([[*table[:count], *[0] * (count - len(table))] for table in tables])


@dataclass(frozen=True)
class _Tile:
    """Sequences with the same number of queries in a step, which attend together."""

    rows_BQ: Tensor
    """Where the queries are in the step."""
    tables_BP: Tensor
    """In which blocks of the cache the keys are."""
    visible_BQ: Tensor
    """How many keys each query sees."""


class PagedAttend:
    """The `Attend` of one step: writes the step's keys and values, then attends over all that each sequence has."""

    def __init__(self, cache: PagedCache, parts: Sequence[Part]) -> None:
        self._cache = cache
        slots = [slot for part in parts for slot in cache.slots(part.blocks, part.start, part.end)]
        self._slots_T = torch.tensor(slots)
        self._tiles = list(_tiles(cache, parts))

    def __call__(self, layer: int, q_BTNH: Tensor, k_BTGH: Tensor, v_BTGH: Tensor) -> Tensor:
        """See `Attend`; the step is one batch of all tokens, [1, T, ...]."""
        self._cache.write(layer, self._slots_T, k_BTGH[0], v_BTGH[0])
        out_TNH = torch.empty_like(q_BTNH[0])
        for tile in self._tiles:
            k_GBCH, v_GBCH = self._cache.read(layer, tile.tables_BP)
            out_TNH[tile.rows_BQ] = attend(q_BTNH[0, tile.rows_BQ], k_GBCH, v_GBCH, tile.visible_BQ)
        return out_TNH[None]


def attend(q_BQNH: Tensor, k_GBCH: Tensor, v_GBCH: Tensor, visible_BQ: Tensor) -> Tensor:
    """Scaled dot-product attention of each query over the first `visible` keys of its sequence: [B, Q, N, H], fp32.

    To the last bit the same whatever B, Q and C are: scores and softmax do not depend on them, and the weighted sum
    runs over blocks of `KEYS` in order, to which hidden keys add exact zeros. Hidden values are overwritten with zeros.
    """
    batch, queries, heads, size = q_BQNH.shape
    groups, _, keys, _ = k_GBCH.shape
    rows = queries * (heads // groups)

    def by_query(x_XM: Tensor) -> Tensor:
        """View padded rows [X, M, n] as [G, B, Q, R, n], R heads that share keys."""
        return x_XM[:, :rows].view(groups, batch, queries, heads // groups, -1)

    positions_C = torch.arange(keys)
    # What a freed block still holds must not reach anybody: a hidden NaN times zero is a NaN.
    v_GBCH.masked_fill_((positions_C >= visible_BQ.amax(1, keepdim=True))[..., None], 0.0)
    q_GBQRH = q_BQNH.view(batch, queries, groups, -1, size).permute(2, 0, 1, 3, 4)
    q_XMH = pad_rows(q_GBQRH.reshape(groups * batch, rows, size))
    k_XCH, v_XCH = k_GBCH.flatten(0, 1), v_GBCH.flatten(0, 1)
    scores_XMC = torch.bmm(q_XMH, k_XCH.transpose(1, 2)) * size**-0.5
    by_query(scores_XMC).masked_fill_((positions_C >= visible_BQ[..., None])[:, :, None], -torch.inf)
    weights_XMC = torch.softmax(scores_XMC, dim=-1)
    out_XMH = torch.zeros_like(q_XMH)
    for first in range(0, keys, KEYS):
        out_XMH += torch.bmm(weights_XMC[..., first : first + KEYS], v_XCH[:, first : first + KEYS])
    return by_query(out_XMH).permute(1, 2, 0, 3, 4).flatten(2, 3)


def _tiles(cache: PagedCache, parts: Sequence[Part]) -> Iterator[_Tile]:
    """One tile for all single tokens, and tiles of at most `QUERIES` for each longer part."""
    single: list[tuple[int, Part]] = []
    row = 0
    for part in parts:
        if len(part.tokens) == 1:
            single.append((row, part))
        else:
            for start in range(part.start, part.end, QUERIES):
                end = min(start + QUERIES, part.end)
                rows = torch.arange(row + start - part.start, row + end - part.start)
                yield _Tile(rows[None], cache.tables([part.blocks], end), torch.arange(start + 1, end + 1)[None])
        row += len(part.tokens)
    if single:
        rows_B1 = torch.tensor([[row] for row, _ in single])
        visible_B1 = torch.tensor([[part.end] for _, part in single])
        longest = max(part.end for _, part in single)
        yield _Tile(rows_B1, cache.tables([part.blocks for _, part in single], longest), visible_B1)
