"""Attention of a step over paged keys and values on the device: laying the step out, storing, attending.

What a query gets is the same to the last bit whatever shares its step: keys are taken in tiles that begin at multiples
of their size, and what each gives is added up in their order, whether one program does it or one a tile. Nothing here
is read on the host, and all shapes follow from a step's `Extent`: a CUDA graph can be captured for one.

Shapes are named by the legend of `arctic_model.layers`, of which T is all tokens of a step here; besides: B sequences
of a step, P blocks of the longest table, M tiles of queries, X = (N + 2 G) H.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import e, log2, prod
from typing import NamedTuple, Self, TypeVar

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from arctic_model import fp8
from arctic_model.launch import launch
from arctic_model.layers import RotaryPositions, Rotation, rotation_of
from arctic_workers.inference.engines.native.cuda.kernels.attention import attend_tiles, merge_tiles
from arctic_workers.inference.engines.native.cuda.kernels.storing import store_heads
from arctic_workers.inference.engines.native.step import Part
from arctic_workers.inference.engines.native.window import Window

Numbers = TypeVar("Numbers", Tensor, NDArray[np.int32])

ENOUGH = 512
"""Programs that keep a GPU busy: with as many or more, each takes all keys of its queries, and nothing is added up."""
WORKSPACE = 1 << 28
"""Bytes that parts which are added up later take at most: 64 sequences of 128k tokens would take 4 GiB."""
ROWS = 16
"""Least rows of a dot."""
TILE_BYTES = 1 << 14
"""Of a tile's keys: more of them, and of as many values, are too much for registers and shared memory."""
MOST_KEYS = 128
"""Of a tile."""
STAGES = 4
"""Parts of a sum that are asked for ahead."""
MOST_REGISTERS = 255
"""Of a thread: all that there are. Without being told, ptxas keeps to fewer for bf16 on Hopper, and spills."""
ALIGNED = 4
"""Integers to whose multiples each part of a step is padded: whether addresses are aligned changes compiled code."""


@dataclass(frozen=True)
class Attention:
    """What the attention of all layers and steps of a rank has in common."""

    heads: int
    """N, those of this rank."""
    groups: int
    """G, of which N is a multiple."""
    block_size: int
    """Tokens of a block of the cache."""
    window: Window | None
    """What a query sees; None for all before it."""
    frequencies_H2: Tensor
    """Of the rotary positions, in radians a position: fp64 on the device."""
    magnitude: float
    """By which the rotation stretches queries and keys."""
    sink_rotation: Rotation | None
    """By which a query turns that meets the sinks apart, [1, H]: it is as far from them as if nothing was dropped."""

    @classmethod
    def of(
        cls,
        rotary: RotaryPositions,
        device: torch.device,
        *,
        heads: int,
        groups: int,
        block_size: int,
        window: Window | None,
    ) -> Self:
        """Bring what a rank needs of the rotary positions to a device."""
        frequencies_H2 = rotary.frequencies_H2.double().to(device)
        sink_rotation = None
        if window is not None and window.sinks:
            last_1 = torch.full((1,), window.reach - 1, device=device)
            sink_rotation = rotation_of(last_1, frequencies_H2, rotary.magnitude)
        return cls(heads, groups, block_size, window, frequencies_H2, rotary.magnitude, sink_rotation)

    @property
    def shared(self) -> int:
        """Query heads that share keys."""
        return self.heads // self.groups

    @property
    def head_dim(self) -> int:
        """H, a multiple of 8 up to 256."""
        return 2 * len(self.frequencies_H2)

    @property
    def rows(self) -> int:
        """Rows of a dot."""
        return max(ROWS, int(triton.next_power_of_2(self.shared)))

    @property
    def queries(self) -> int:
        """Most queries of a tile: what their heads that share keys fill of a dot's rows."""
        return self.rows // self.shared


class Extent(NamedTuple):
    """How much there is in a step: from it follow the shapes of all tensors and the grids of all kernels."""

    tokens: int
    """T."""
    tiles: int
    """M."""
    sequences: int
    """B."""
    blocks: int
    """P."""

    @classmethod
    def of(cls, parts: Sequence[Part], attention: Attention) -> Self:
        """Return that of a step of any parts."""
        queries = attention.queries
        return cls(
            sum(len(part.tokens) for part in parts),
            sum(-(-len(part.tokens) // queries) for part in parts),
            len(parts),
            max((len(part.blocks) for part in parts), default=0),
        )

    @classmethod
    def of_singles(cls, sequences: int, blocks: int) -> Self:
        """Return that of a step in which so many sequences or fewer, of so many blocks or fewer, have a token each."""
        return cls(sequences, sequences, sequences, blocks)

    @property
    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.tokens,), (self.tokens,), (self.tiles, 4), (self.sequences, self.blocks), (self.sequences,)

    @property
    def numbers(self) -> int:
        """How many integers describe such a step."""
        return sum(map(_padded, self._shapes))

    def views(self, numbers: Numbers) -> tuple[Numbers, ...]:
        """Take them apart: positions [T], sequences [T], tiles [M, 4], tables [B, P] and dropped blocks [B]."""
        starts = accumulate(map(_padded, self._shapes), initial=0)
        return tuple(
            numbers[start : start + prod(shape)].reshape(shape)
            for start, shape in zip(starts, self._shapes, strict=False)
        )


def _padded(shape: Sequence[int]) -> int:
    return -(-prod(shape) // ALIGNED) * ALIGNED


def lay_out(parts: Sequence[Part], extent: Extent, attention: Attention) -> Tensor:
    """Describe a step on the host: int32 [extent.numbers].

    Rows of an extent of singles that the parts don't fill are nobody's: nothing is stored for them, and they get
    zeros. ValueError where the parts are not of the extent.
    """
    own = Extent.of(parts, attention)
    spare = extent.tokens - own.tokens
    if spare < 0 or extent.tiles - own.tiles != spare or own.sequences > extent.sequences or own.blocks > extent.blocks:
        raise ValueError(f"parts of {own} are no step of {extent}")
    numbers = np.zeros(extent.numbers, np.int32)
    positions_T, sequences_T, tiles_M4, tables_BP, dropped_B = extent.views(numbers)
    positions_T[: own.tokens] = [position for part in parts for position in range(part.start, part.end)]
    positions_T[own.tokens :] = -1
    sequences_T[: own.tokens] = [index for index, part in enumerate(parts) for _ in part.tokens]
    dropped_B[: own.sequences] = [part.dropped for part in parts]
    for index, part in enumerate(parts):
        tables_BP[index, : len(part.blocks)] = part.blocks
    tiles_M4[:] = list(_tiles(parts, extent, attention.queries))
    return torch.from_numpy(numbers)


def _tiles(parts: Sequence[Part], extent: Extent, queries: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a step's rows into tiles: the first row and how many, its position, and its sequence."""
    row = 0
    for index, part in enumerate(parts):
        for start in range(0, len(part.tokens), queries):
            yield row + start, min(queries, len(part.tokens) - start), part.start + start, index
        row += len(part.tokens)
    yield from ((first, 1, -1, 0) for first in range(row, extent.tokens))


@dataclass(frozen=True)
class Step:
    """Where a step's tokens and their keys are, on the device: views of what `lay_out` gave, and the rotation."""

    positions_T: Tensor
    """int32, within the sequence; -1 is nobody's."""
    sequences_T: Tensor
    """int32: which row of `tables_BP` is the token's."""
    tiles_M4: Tensor
    """int32: first row and number of rows of consecutive queries, the first one's position, and its sequence."""
    tables_BP: Tensor
    """int32: the blocks of each sequence."""
    dropped_B: Tensor
    """int32: how many blocks are missing between the sinks' and what follows them in the table."""
    rotation: Rotation
    """Of each token's position, fp32 [T, H]."""

    @classmethod
    def of(cls, numbers: Tensor, extent: Extent, attention: Attention) -> Self:
        """Take what `lay_out` gave apart, once it is on the device, and compute the rotation of all layers there."""
        positions_T, sequences_T, tiles_M4, tables_BP, dropped_B = extent.views(numbers)
        rotation = rotation_of(positions_T, attention.frequencies_H2, attention.magnitude)
        return cls(positions_T, sequences_T, tiles_M4, tables_BP, dropped_B, rotation)


class Queries(NamedTuple):
    """Rotated queries, fp32."""

    q_TNH: Tensor
    sink_q_TNH: Tensor | None
    """As they meet the sinks apart from what follows, where the window has some."""


def store(tensors: Mapping[str, Tensor], qkv_TX: Tensor, step: Step, attention: Attention) -> Queries:
    """Rotate queries and keys, write keys and values into the cache, and return the queries.

    `tensors` are a layer's in the cache, as `PagedCache.tensors` has them, on the device; e4m3 is rounded as
    `arctic_model.fp8.quantize` does. `qkv_TX` is fp32 and contiguous: queries, keys and values side by side.
    """
    keys, values = (_bits(tensors[name]) for name in ("keys", "values"))
    q_TNH = qkv_TX.new_empty((len(qkv_TX), attention.heads, attention.head_dim))
    sinks = attention.sink_rotation
    sink_q_TNH = None if sinks is None else torch.empty_like(q_TNH)
    launch(
        store_heads,
        (len(qkv_TX), attention.groups),
        qkv_TX,
        *step.rotation,
        *(sinks or (None, None)),
        step.positions_T,
        step.sequences_T,
        step.tables_BP,
        step.dropped_B,
        q_TNH,
        sink_q_TNH,
        keys,
        values,
        tensors.get("key_scales"),
        tensors.get("value_scales"),
        keys.shape[1],
        step.tables_BP.shape[1],
        GROUPS=attention.groups,
        SHARED=attention.shared,
        SIZE=attention.head_dim,
        PADDED=triton.next_power_of_2(attention.head_dim),
        ROWS=triton.next_power_of_2(attention.shared),
        BLOCK=attention.block_size,
        SINK_BLOCKS=0 if attention.window is None else attention.window.sink_blocks(attention.block_size),
    )
    return Queries(q_TNH, sink_q_TNH)


def _bits(numbers: Tensor) -> Tensor:
    """View numbers as the kernel writes them: it rounds to e4m3 and bf16 itself."""
    return numbers.view({fp8.DTYPE: torch.uint8, torch.bfloat16: torch.int16}.get(numbers.dtype, numbers.dtype))


def attend(queries: Queries, tensors: Mapping[str, Tensor], step: Step, attention: Attention) -> Tensor:
    """Attend over all that each query sees of a layer's cache: fp32 [T, N, H]. `tensors` are as in `store`.

    Few queries share the GPU out by tiles of keys, which takes a workspace of T N H floats for each; of many queries,
    or where that would be more than `WORKSPACE`, each meets its keys in one program. The answers are the same to the
    bit.
    """
    keys, window = tensors["keys"], attention.window
    size = attention.head_dim
    padded = max(ROWS, triton.next_power_of_2(size))
    tile = _tile_of_keys(padded, keys.dtype)
    sinks = 0 if window is None else window.sinks
    programs = _most_tiles(step.tables_BP.shape[1], tile, attention) + bool(sinks)
    apart = programs > 1 and len(step.tiles_M4) * attention.groups < ENOUGH
    apart = apart and 4 * queries.q_TNH.numel() * programs <= WORKSPACE
    splits = programs - bool(sinks) if apart else 0
    out_TNH = torch.empty_like(queries.q_TNH)
    of_parts = (*out_TNH.shape[:2], programs if apart else 0)
    parts = (out_TNH.new_empty(of_parts), out_TNH.new_empty(of_parts), out_TNH.new_empty((*of_parts, size)))
    constants = {
        "SIZE": size,
        "PADDED": padded,
        "TILE": tile,
        "WINDOW": 0 if window is None else window.size,
        "SINKS": sinks,
    }
    launch(
        attend_tiles,
        (len(step.tiles_M4), attention.groups, programs if apart else 1),
        *queries,
        keys,
        tensors["values"],
        tensors.get("key_scales"),
        tensors.get("value_scales"),
        step.tiles_M4,
        step.tables_BP,
        step.dropped_B,
        out_TNH,
        *parts,
        keys.shape[1],
        step.tables_BP.shape[1],
        splits,
        size**-0.5 * log2(e),
        GROUPS=attention.groups,
        SHARED=attention.shared,
        ROWS=attention.rows,
        BLOCK=attention.block_size,
        **constants,
        maxnreg=MOST_REGISTERS,
    )
    if apart:
        launch(
            merge_tiles,
            (len(out_TNH), attention.heads),
            *parts,
            step.positions_T,
            out_TNH,
            splits,
            HEADS=attention.heads,
            STAGES=STAGES,
            **constants,
            num_warps=1,
        )
    return out_TNH


def _tile_of_keys(padded: int, dtype: torch.dtype) -> int:
    """Return how many keys of a padded size are taken at once: as many in any step, or sums would have other orders."""
    return min(TILE_BYTES // (padded * dtype.itemsize), MOST_KEYS)


def _most_tiles(blocks: int, tile: int, attention: Attention) -> int:
    """Return how many tiles of keys, beside the sinks', the queries of one tile see at most."""
    tokens = blocks * attention.block_size
    if attention.window is None:
        return -(-tokens // tile)
    tokens = min(tokens, attention.window.reach + attention.queries - 1)
    return (tokens + tile - 2) // tile + 1  # where the first may be anywhere in its tile
