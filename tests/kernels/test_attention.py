"""Paged attention on the device, beside what the engine computes in plain torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

from arctic_model import fp8
from arctic_model.config import ArcticConfig
from arctic_model.launch import launch as kernel_launch
from arctic_model.layers import RotaryPositions, rotate
from arctic_workers.inference.engines.native.blocks import BLOCK_SIZE
from arctic_workers.inference.engines.native.cache import PagedAttend, PagedCache
from arctic_workers.inference.engines.native.cuda import attention as module
from arctic_workers.inference.engines.native.cuda.attention import Attention, Extent, Queries, Step, attend, lay_out
from arctic_workers.inference.engines.native.cuda.kernels.attention import merge_tiles
from arctic_workers.inference.engines.native.step import Part
from arctic_workers.inference.engines.native.window import Window

FORMATS = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.bfloat16, id="bf16"),
    pytest.param(fp8.DTYPE, id="fp8"),
]
CHUNK = 16
"""Tokens of a step of a sequence's history."""


@pytest.fixture(autouse=True)
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter multiplies the integers that bits of bf16 are, and has zeros where a mask has nothing."""
    create_dot, create_masked_load = InterpreterBuilder.create_dot, InterpreterBuilder.create_masked_load

    def dot(builder: Any, a: Any, b: Any, *others: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = (builder.create_fp_ext(operand, tl.float32) for operand in (a, b))
        return create_dot(builder, a, b, *others)

    def masked_load(builder: Any, ptrs: Any, mask: Any, other: Any, *others: Any) -> Any:
        loaded = create_masked_load(builder, ptrs, mask, other, *others)
        if other is None and loaded.dtype.is_floating():
            loaded.data[~mask.data] = {1: 0x7F, 2: 0x7FFF}.get(loaded.data.itemsize, np.nan)
        return loaded

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", masked_load)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KEYS", 32)


class Served:
    """Sequences in a cache in which all that is not theirs, or not written yet, is no number."""

    def __init__(
        self,
        dtype: torch.dtype,
        window: Window | None = None,
        *,
        heads: int = 2,
        groups: int = 1,
        size: int = 16,
    ) -> None:
        torch.manual_seed(0)
        config = ArcticConfig.preset("arctic-tiny").replace(
            hidden_size=heads * size, num_attention_heads=heads, num_key_value_heads=groups
        )
        self.shape = (heads, groups, size)
        self.rotary = RotaryPositions(config)
        self.window = window
        self.cache = PagedCache(
            range(1), blocks=64, block_size=BLOCK_SIZE, heads=groups, head_dim=size, dtype=dtype, window=window
        )
        for tensor in self.tensors.values():
            # The code of a NaN in e4m3; the interpreter takes it for 480.
            tensor.view(torch.uint8).fill_(0x7F) if tensor.dtype == fp8.DTYPE else tensor.fill_(torch.nan)
        self.attention = Attention.of(
            self.rotary,
            torch.device("cpu"),
            heads=heads,
            groups=groups,
            block_size=BLOCK_SIZE,
            window=window,
        )
        # Block 0 is nobody's: it stands for what is not there.
        self._free = iter((torch.randperm(63) + 1).tolist())

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.cache.tensors(0)

    def sequence(self, start: int, tokens: int, scale: float = 1.0) -> Part:
        """Return the next tokens of a new sequence of which `start` are in the cache."""
        end, window = start + tokens, self.window
        count = -(-end // BLOCK_SIZE)
        if window is not None:
            held = window.size - 1 + CHUNK
            count = min(count, window.sink_blocks(BLOCK_SIZE) + (held + BLOCK_SIZE - 2) // BLOCK_SIZE + 1)
        table = [next(self._free) for _ in range(count)]
        dropped = 0
        for first in range(0, end, CHUNK):
            last = min(first + CHUNK, end)
            if window is not None:
                dropped = window.slide(table, dropped, last, BLOCK_SIZE)
            part = Part(first, (0,) * (last - first), tuple(table), None, dropped=dropped)
            self._write(part, scale if first < start else torch.nan)
        part = Part(start, (0,) * tokens, tuple(table), None, dropped=dropped)
        if window is not None:
            for position in range(window.sinks, window.first(start)):
                self._write(Part(position, (0,), part.blocks, None, dropped=dropped), torch.nan)
        return part

    def _write(self, part: Part, scale: float) -> None:
        _, groups, size = self.shape
        slots = torch.tensor(self.cache.slots(part))
        k_TGH, v_TGH = (torch.randn(len(slots), groups, size) for _ in range(2))
        self.cache.write(0, slots, k_TGH, scale * v_TGH)

    def expected(self, parts: Sequence[Part], scale: float = 1.0, stretch: float = 1.0) -> tuple[Queries, Tensor]:
        """Let torch attend with new tokens that are random, queries and values so large: return the queries too."""
        heads, groups, size = self.shape
        positions_T = torch.cat([torch.arange(part.start, part.end) for part in parts])
        rotation = self.rotary(positions_T[None])
        raw_TNH = stretch * torch.randn(len(positions_T), heads, size)
        q_TNH = rotate(raw_TNH[None], rotation)[0]
        k_TGH, v_TGH = (torch.randn(1, len(positions_T), groups, size) for _ in range(2))
        attend_all = PagedAttend(self.cache, parts, self.rotary.frequencies_H2)
        out_TNH = attend_all(0, q_TNH[None], rotate(k_TGH, rotation), scale * v_TGH)[0]
        sinks = self.attention.sink_rotation
        return Queries(q_TNH, None if sinks is None else rotate(raw_TNH, sinks)), out_TNH

    def computed(self, parts: Sequence[Part], queries: Queries, extent: Extent | None = None) -> Tensor:
        """Attend on the device, of which the CPU takes the place."""
        extent = extent or Extent.of(parts, self.attention)
        step = Step.of(lay_out(parts, extent, self.attention), extent, self.attention)
        return attend(queries, self.tensors, step, self.attention)


def rows(queries: Queries, *which: int) -> Queries:
    """Return some of the queries."""
    sinks = queries.sink_q_TNH
    return Queries(queries.q_TNH[list(which)], None if sinks is None else sinks[list(which)])


@pytest.mark.parametrize("dtype", FORMATS)
def test_each_query_meets_what_came_before_it_in_blocks_anywhere(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what is free, or comes after it: NaNs. One program a tile of keys, or one for all, is the same to the bit."""
    served = Served(dtype)
    parts = [served.sequence(*span) for span in ((140, 1), (30, 5), (0, 1), (61, 18), (31, 1))]
    queries, expected_TNH = served.expected(parts)
    out_TNH = served.computed(parts, queries)
    torch.testing.assert_close(out_TNH, expected_TNH, rtol=0, atol=3e-6)
    monkeypatch.setattr(module, "ENOUGH", 0)
    assert torch.equal(served.computed(parts, queries), out_TNH)


def test_memory_for_parts_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(torch.float32)
    parts = [served.sequence(140, 1)]
    queries, _ = served.expected(parts)
    started = []

    def launch(kernel: Any, *arguments: Any, **constants: Any) -> None:
        started.append(kernel)
        kernel_launch(kernel, *arguments, **constants)

    monkeypatch.setattr(module, "launch", launch)
    out_TNH = served.computed(parts, queries)
    assert started.count(merge_tiles) == 1
    monkeypatch.setattr(module, "WORKSPACE", 0)
    assert torch.equal(served.computed(parts, queries), out_TNH)
    assert started.count(merge_tiles) == 1


def test_a_prompt_meets_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(torch.float32)
    monkeypatch.setattr(module, "ENOUGH", 0)
    parts = [served.sequence(0, 70)]
    queries, expected_TNH = served.expected(parts)
    torch.testing.assert_close(served.computed(parts, queries), expected_TNH, rtol=0, atol=3e-6)


@pytest.mark.parametrize("dtype", [torch.float32, fp8.DTYPE])
def test_a_query_alone_gets_the_same_bits(dtype: torch.dtype) -> None:
    served = Served(dtype)
    chunk, other = served.sequence(58, 12), served.sequence(40, 1)
    queries, _ = served.expected([other, chunk])
    together_TNH = served.computed([other, chunk], queries)
    for place in (0, 5, 6, 11):
        alone = Part(58 + place, (0,), chunk.blocks, None)
        assert torch.equal(served.computed([alone], rows(queries, 1 + place))[0], together_TNH[1 + place]), place
    turned = served.computed([chunk, other], rows(queries, *range(1, 13), 0))
    assert torch.equal(turned, torch.cat((together_TNH[1:], together_TNH[:1])))


@pytest.mark.parametrize(
    ("dtype", "sinks"), [(torch.float32, 0), (torch.float32, 36), (torch.bfloat16, 4), (fp8.DTYPE, 4)], ids=str
)
def test_a_window_that_has_moved_sees_the_latest_tokens_and_the_sinks(
    dtype: torch.dtype, sinks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After blocks between them were dropped; also where only some of a chunk's queries have moved on."""
    window = Window(40, sinks)
    served = Served(dtype, window, heads=4)
    parts = [served.sequence(150, 12), served.sequence(window.reach - 3, 6), served.sequence(20, 1)]
    assert parts[0].dropped
    queries, expected_TNH = served.expected(parts)
    out_TNH = served.computed(parts, queries)
    torch.testing.assert_close(out_TNH, expected_TNH, rtol=0, atol=1e-5)
    for place in (0, 7, 11):
        alone = Part(150 + place, (0,), parts[0].blocks, None, dropped=parts[0].dropped)
        assert torch.equal(served.computed([alone], rows(queries, place))[0], out_TNH[place]), place
    monkeypatch.setattr(module, "ENOUGH", 0)
    assert torch.equal(served.computed(parts, queries), out_TNH)


@pytest.mark.parametrize("shape", [(7, 1, 24), (20, 1, 8), (6, 3, 40)], ids=str)
def test_heads_of_any_size_share_keys_in_any_number(shape: tuple[int, int, int]) -> None:
    heads, groups, size = shape
    served = Served(fp8.DTYPE, heads=heads, groups=groups, size=size)
    parts = [served.sequence(33, 3), served.sequence(50, 1)]
    queries, expected_TNH = served.expected(parts)
    torch.testing.assert_close(served.computed(parts, queries), expected_TNH, rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    ("stretch", "scale", "error"), [(1.0, 1e-9, 3e-6), (1.0, 1e9, 3e-6), (1e-6, 1.0, 3e-6), (1e2, 1.0, 3e-4)]
)
def test_what_is_large_or_small_keeps_its_digits(stretch: float, scale: float, error: float) -> None:
    """Queries, and values of e4m3, are multiplied in fp16, which does not hold all of them."""
    served = Served(fp8.DTYPE)
    parts = [served.sequence(70, 1, scale), served.sequence(40, 3, scale)]
    queries, expected_TNH = served.expected(parts, scale, stretch)
    torch.testing.assert_close(served.computed(parts, queries) / scale, expected_TNH / scale, rtol=0, atol=error)


def test_values_of_all_sizes_add_up() -> None:
    """The greatest weight may be a tiny value's."""
    served = Served(fp8.DTYPE)
    part = served.sequence(70, 1)
    scales_GS = served.tensors["value_scales"]
    scales_GS[:, served.cache.slots(Part(0, (0,) * 70, part.blocks, None))] *= 10.0 ** torch.linspace(-12, 6, 70)
    queries, expected_TNH = served.expected([part])
    torch.testing.assert_close(served.computed([part], queries), expected_TNH, rtol=2e-5, atol=1e-2)


def test_a_smaller_step_than_was_laid_out_for_is_the_same_and_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(fp8.DTYPE, Window(40, 4))
    parts = [served.sequence(100, 1), served.sequence(9, 1)]
    queries, _ = served.expected(parts)
    out_TNH = served.computed(parts, queries)
    spare = [
        torch.cat((of_parts, torch.full_like(of_parts, torch.nan))) for of_parts in queries if of_parts is not None
    ]
    monkeypatch.setattr(torch, "empty_like", lambda like: torch.full_like(like, torch.nan))
    for enough in (512, 0):
        monkeypatch.setattr(module, "ENOUGH", enough)
        padded_TNH = served.computed(parts, Queries(*spare), Extent.of_singles(4, 32))
        assert torch.equal(padded_TNH[:2], out_TNH)
        assert not padded_TNH[2:].any()


@pytest.mark.parametrize(
    "extent",
    [Extent.of_singles(1, 3), Extent.of_singles(2, 3), Extent(3, 2, 2, 2), Extent(3, 2, 1, 3), Extent.of_singles(3, 3)],
    ids=str,
)
def test_parts_that_do_not_fit_are_refused(extent: Extent) -> None:
    served = Served(torch.float32)
    parts = [Part(40, (0,), (1, 2, 3), None), Part(0, (0, 0), (4,), None)]
    assert len(lay_out(parts[:1], Extent.of_singles(2, 3), served.attention)) == Extent.of_singles(2, 3).numbers
    with pytest.raises(ValueError, match="no step of Extent"):
        lay_out(parts, extent, served.attention)
