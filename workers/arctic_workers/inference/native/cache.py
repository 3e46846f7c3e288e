"""Paged keys and values, and the attention of a step's ragged batch over them.

Shapes are named by the legend of `arctic_model.layers`; besides: X independent attentions (sequences times key-value
heads), Q queries of a sequence, C keys, M query rows of one attention (queries times the heads that share its keys).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arctic_workers.inference.native.invariant import pad_rows
from arctic_workers.inference.native.step import Part

QUERIES = 128
"""Most queries of one sequence that attend at once: bounds the memory of the scores."""
KEYS = 64
"""Keys are taken in so many, from the first position on: so a token's sum has the same order in any batch."""


class PagedCache:
    """Keys and values of the layers of one rank: for each, `blocks * block_size` slots [G, H]."""

    def __init__(
        self, layers: range, *, blocks: int, block_size: int, heads: int, head_dim: int, dtype: torch.dtype
    ) -> None:
        self.block_size = block_size
        self._first = layers.start
        # Zeros come from the kernel untouched, so memory is taken only when slots are written.
        self._keys = torch.zeros(len(layers), blocks * block_size, heads, head_dim, dtype=dtype)
        self._values = torch.zeros_like(self._keys)

    def slots(self, blocks: Sequence[int], start: int, end: int) -> list[int]:
        """Return the slots of positions `start` to `end` of a sequence with that block table."""
        size = self.block_size
        return [blocks[position // size] * size + position % size for position in range(start, end)]

    def write(self, layer: int, slots_T: Tensor, k_TGH: Tensor, v_TGH: Tensor) -> None:
        """Store keys and values of a step."""
        self._keys[layer - self._first, slots_T] = k_TGH.to(self._keys.dtype)
        self._values[layer - self._first, slots_T] = v_TGH.to(self._values.dtype)

    def read(self, layer: int, slots_BC: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values in fp32, [B, C, G, H] each."""
        return self._keys[layer - self._first, slots_BC].float(), self._values[layer - self._first, slots_BC].float()


@dataclass(frozen=True)
class _Tile:
    """Sequences with the same number of queries in a step, which attend together."""

    rows_BQ: Tensor
    """Where the queries are in the step."""
    slots_BC: Tensor
    """Where the keys are in the cache; C is a multiple of `KEYS`."""
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
            k_BCGH, v_BCGH = self._cache.read(layer, tile.slots_BC)
            out_TNH[tile.rows_BQ] = attend(q_BTNH[0, tile.rows_BQ], k_BCGH, v_BCGH, tile.visible_BQ)
        return out_TNH[None]


def attend(q_BQNH: Tensor, k_BCGH: Tensor, v_BCGH: Tensor, visible_BQ: Tensor) -> Tensor:
    """Scaled dot-product attention of each query over the first `visible` keys of its sequence: [B, Q, N, H], fp32.

    To the last bit the same whatever B, Q and C are: scores and softmax do not depend on them, and the weighted sum
    runs over blocks of `KEYS` in order, to which hidden keys add exact zeros.
    """
    batch, queries, heads, size = q_BQNH.shape
    keys, groups = k_BCGH.shape[1:3]
    shared = heads // groups
    rows = queries * shared
    q_BGQRH = q_BQNH.view(batch, queries, groups, shared, size).permute(0, 2, 1, 3, 4)
    q_XMH = pad_rows(q_BGQRH.reshape(batch * groups, rows, size))
    positions_C = torch.arange(keys)
    # What a freed block still holds must not reach anybody: a hidden NaN times zero is a NaN.
    held_BC11 = (positions_C < visible_BQ.amax(1, keepdim=True))[..., None, None]
    k_XCH = k_BCGH.where(held_BC11, 0.0).transpose(1, 2).reshape(batch * groups, keys, size)
    v_XCH = v_BCGH.where(held_BC11, 0.0).transpose(1, 2).reshape(batch * groups, keys, size)
    scores_XMC = torch.bmm(q_XMH, k_XCH.transpose(1, 2)) * size**-0.5
    hidden_BQC = positions_C >= visible_BQ[..., None]
    hidden_BGQRC = hidden_BQC[:, None, :, None].expand(batch, groups, queries, shared, keys)
    scores_XMC[:, :rows].masked_fill_(hidden_BGQRC.reshape(batch * groups, rows, keys), -torch.inf)
    weights_XMC = torch.softmax(scores_XMC, dim=-1)
    out_XMH = torch.zeros_like(q_XMH)
    for first in range(0, keys, KEYS):
        out_XMH += torch.bmm(weights_XMC[..., first : first + KEYS], v_XCH[:, first : first + KEYS])
    out_BGQRH = out_XMH[:, :rows].view(batch, groups, queries, shared, size)
    return out_BGQRH.permute(0, 2, 1, 3, 4).reshape(batch, queries, heads, size)


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
                yield _Tile(rows[None], _padded_slots(cache, [(part, end)]), torch.arange(start + 1, end + 1)[None])
        row += len(part.tokens)
    if single:
        rows_B1 = torch.tensor([[row] for row, _ in single])
        visible_B1 = torch.tensor([[part.end] for _, part in single])
        yield _Tile(rows_B1, _padded_slots(cache, [(part, part.end) for _, part in single]), visible_B1)


def _padded_slots(cache: PagedCache, sequences: Sequence[tuple[Part, int]]) -> Tensor:
    """Slots of the first positions of each sequence, padded with slot 0 to a common multiple of `KEYS`: [B, C]."""
    longest = max(end for _, end in sequences)
    keys = -(-longest // KEYS) * KEYS
    return torch.tensor([(cache.slots(part.blocks, 0, end) + [0] * keys)[:keys] for part, end in sequences])
