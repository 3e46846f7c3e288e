"""What new tokens leave in the cache, to the bit, and their queries."""

import math

import pytest
import torch
from torch import Tensor

from arctic_model import fp8
from arctic_model.config import ArcticConfig
from arctic_model.layers import RotaryPositions, Rotation, rotate, rotation_of
from arctic_workers.inference.engines.native.blocks import BLOCK_SIZE
from arctic_workers.inference.engines.native.cache import PagedCache
from arctic_workers.inference.engines.native.cuda.attention import Attention, Extent, Queries, Step, lay_out, store
from arctic_workers.inference.engines.native.step import Part
from arctic_workers.inference.engines.native.window import Window

FORMATS = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.bfloat16, id="bf16"),
    pytest.param(fp8.DTYPE, id="fp8"),
]
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
FAR = 1_000_003


class Stored:
    """A cache into which tokens are stored, and another into which torch stores the same."""

    def __init__(
        self,
        dtype: torch.dtype,
        *,
        heads: int = 3,
        groups: int = 1,
        size: int = 16,
        window: Window | None = None,
    ) -> None:
        torch.manual_seed(0)
        config = ArcticConfig.preset("arctic-tiny").replace(
            hidden_size=heads * size, num_attention_heads=heads, num_key_value_heads=groups, rope_scaling=YARN
        )
        self.shape = (heads, groups, size)
        self.rotary = RotaryPositions(config)
        self.cache, self.torchs = (
            PagedCache(
                range(1), blocks=12, block_size=BLOCK_SIZE, heads=groups, head_dim=size, dtype=dtype, window=window
            )
            for _ in range(2)
        )
        for tensor in (*self.cache.tensors(0).values(), *self.torchs.tensors(0).values()):
            tensor.view(torch.uint8).fill_(0x11)  # what is not to change
        self.attention = Attention.of(
            self.rotary,
            torch.device("cpu"),
            heads=heads,
            groups=groups,
            block_size=BLOCK_SIZE,
            window=window,
        )

    def random(self, parts: list[Part]) -> list[Tensor]:
        """Return queries, keys and values for all tokens: [T, N, H] and twice [T, G, H]."""
        heads, groups, size = self.shape
        tokens = sum(len(part.tokens) for part in parts)
        return [torch.randn(tokens, count, size) for count in (heads, groups, groups)]

    def rotation(self, parts: list[Part]) -> Rotation:
        return self.rotary(torch.cat([torch.arange(part.start, part.end) for part in parts]))

    def store(self, parts: list[Part], qkv: list[Tensor], extent: Extent | None = None) -> Queries:
        """Store them on the device, of which the CPU takes the place."""
        extent = extent or Extent.of(parts, self.attention)
        step = Step.of(lay_out(parts, extent, self.attention), extent, self.attention)
        return store(self.cache.tensors(0), torch.cat([x.flatten(1) for x in qkv], dim=1), step, self.attention)

    def store_by_torch(self, parts: list[Part], k_TGH: Tensor, v_TGH: Tensor) -> None:
        slots = [slot for part in parts for slot in self.torchs.slots(part)]
        self.torchs.write(0, torch.tensor(slots), rotate(k_TGH, self.rotation(parts)), v_TGH)

    def differences(self) -> list[str]:
        """Return the names of the tensors in which not all bits are those of torch."""
        mine, torchs = self.cache.tensors(0), self.torchs.tensors(0)
        return [name for name in mine if not torch.equal(_bytes(mine[name]), _bytes(torchs[name]))]


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("shape", [(3, 1, 16), (4, 2, 24)], ids=str)
def test_keys_and_values_are_where_and_what_torch_makes_them(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    heads, groups, size = shape
    stored = Stored(dtype, heads=heads, groups=groups, size=size)
    parts = [Part(14, (0, 0, 0), (7, 3), None), Part(200, (0,), (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5), None)]
    q_TNH, k_TGH, v_TGH = stored.random(parts)
    v_TGH[1] = 0.0
    queries = stored.store(parts, [q_TNH, k_TGH, v_TGH])
    stored.store_by_torch(parts, k_TGH, v_TGH)
    assert not stored.differences()
    assert queries.sink_q_TNH is None
    torch.testing.assert_close(queries.q_TNH, rotate(q_TNH, stored.rotation(parts)), rtol=0, atol=1e-6)


def test_angles_of_far_positions_are_exact() -> None:
    stored = Stored(torch.float32, window=Window(32, 4))
    part = Part(FAR, (0,), (4, 8, 6, 9), None, dropped=FAR // BLOCK_SIZE - 2)
    q_TNH, k_TGH, v_TGH = stored.random([part])
    queries = stored.store([part], [q_TNH, k_TGH, v_TGH])
    magnitude = 0.1 * math.log(4.0) + 1.0
    for index, frequency in enumerate(stored.rotary.frequencies_H2.tolist()):
        cos, sin = math.cos(FAR * frequency) * magnitude, math.sin(FAR * frequency) * magnitude
        first, second = q_TNH[0, 0, index].item(), q_TNH[0, 0, index + 8].item()
        assert queries.q_TNH[0, 0, index].item() == pytest.approx(first * cos - second * sin, abs=1e-6)
        assert queries.q_TNH[0, 0, index + 8].item() == pytest.approx(second * cos + first * sin, abs=1e-6)


def test_after_blocks_were_dropped_tokens_go_where_the_table_has_them() -> None:
    """And queries that meet the sinks are turned as if nothing was dropped between."""
    window = Window(32, 20)
    stored = Stored(fp8.DTYPE, window=window)
    parts = [
        Part(FAR, (0,) * 7, (4, 8, 6, 9), None, dropped=FAR // BLOCK_SIZE - 2),
        Part(30, (0, 0, 0), (5, 2, 1), None),
    ]
    q_TNH, k_TGH, v_TGH = stored.random(parts)
    queries = stored.store(parts, [q_TNH, k_TGH, v_TGH])
    stored.store_by_torch(parts, k_TGH, v_TGH)
    assert not stored.differences()
    assert queries.sink_q_TNH is not None
    firsts_T = torch.arange(FAR, FAR + 7) - window.size + 1
    back = rotation_of(window.sinks - firsts_T, stored.rotary.frequencies_H2)
    turned_TNH = rotate(rotate(q_TNH, stored.rotation(parts))[:7], back)
    torch.testing.assert_close(queries.sink_q_TNH[:7], turned_TNH, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, fp8.DTYPE], ids=str)
def test_numbers_are_rounded_as_torch_rounds(dtype: torch.dtype) -> None:
    """Those that e4m3 has, those halfway between two, and beside these; of bf16 many that are halfway."""
    if dtype == fp8.DTYPE:
        codes = torch.arange(0x7F, dtype=torch.uint8).view(fp8.DTYPE).float()
        halves = (codes[1:] + codes[:-1]) / 2
        beside = [halves.nextafter(torch.tensor(to)) for to in (0.0, 448.0)]
        numbers = torch.cat((codes, halves, *beside))
    else:
        numbers = (torch.randint(0, 0x7F80, (500,), dtype=torch.int32) << 16 | 0x8000).view(torch.float32)
    stored = Stored(dtype, heads=1, size=128)
    part = Part(0, (0,) * 8, (1,), None)
    q_TNH, k_TGH, v_TGH = stored.random([part])
    # The greatest is first, so that an e4m3 vector's scale is 1.
    for v_H, some in zip(v_TGH[:, 0], torch.split(torch.cat((numbers, -numbers)), 127), strict=True):
        v_H[0], v_H[1 : 1 + len(some)] = 448.0, some
    stored.store([part], [q_TNH, k_TGH, v_TGH])
    stored.store_by_torch([part], k_TGH, v_TGH)
    assert "values" not in stored.differences()


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")  # by the interpreter: infinity by itself
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("wrong", [0x7FFFFFFF, 0x7FC00000, 0x7F800000, -0x800000, 0x7F7FFFFF], ids=hex)
def test_what_is_no_number_stays_none_and_extremes_are_kept(dtype: torch.dtype, wrong: int) -> None:
    """NaNs as GPUs and as CPUs make them, infinities, and the greatest number."""
    stored = Stored(dtype)
    part = Part(3, (0, 0), (2,), None)
    q_TNH, k_TGH, v_TGH = stored.random([part])
    v_TGH[0, 0].view(torch.int32)[5] = wrong
    v_TGH[1, 0] = torch.linspace(-9.2e-43, 9.2e-43, 16)  # an e4m3 scale is rounded so that more than 448 comes out
    stored.store([part], [q_TNH, k_TGH, v_TGH])
    stored.store_by_torch([part], k_TGH, v_TGH)
    tables = torch.tensor([[2]])
    torch.testing.assert_close(
        stored.cache.read(0, tables), stored.torchs.read(0, tables), rtol=0, atol=0, equal_nan=True
    )


def test_rows_that_are_nobodys_store_nothing() -> None:
    stored = Stored(fp8.DTYPE)
    part = Part(3, (0,), (2,), None)
    qkv = stored.random([part])
    stored.store([part], [torch.cat((x, torch.full_like(x, torch.nan))) for x in qkv], Extent.of_singles(2, 4))
    stored.store_by_torch([part], *qkv[1:])
    assert not stored.differences()
