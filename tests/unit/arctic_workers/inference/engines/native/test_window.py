"""Attention sinks and windows: both arithmetics against the definition, and against themselves in other pieces."""

from collections.abc import Iterator

import pytest
import torch
from models import random_model
from torch import Tensor

from arctic_model.attention import attention_mask
from arctic_model.config import ArcticConfig
from arctic_model.layers import rotary_frequencies, rotate, rotation_of
from arctic_workers.inference.engines.native.cache import PagedCache
from arctic_workers.inference.engines.native.kernel.library import library
from arctic_workers.inference.engines.native.kernel.nodes import ANYWHERE
from arctic_workers.inference.engines.native.kernel.rank import KernelRank
from arctic_workers.inference.engines.native.runner import Compute, TorchRank
from arctic_workers.inference.engines.native.step import Part
from arctic_workers.inference.engines.native.window import CHUNK, Window

CONFIG = ArcticConfig.preset("arctic-tiny").replace(
    vocab_size=50,
    hidden_size=96,
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=40,
    num_hidden_layers=3,
    moe_layer_frequency=2,
    num_local_experts=4,
)
YARN = CONFIG.replace(rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64})
ODD = CONFIG.replace(hidden_size=60, num_key_value_heads=3)
WINDOWS = [Window(7, 3), Window(40, 17), Window(70, 4), Window(50, 0), Window(1, 0)]
BLOCK = 16
RANKS = [
    pytest.param(
        "kernel", marks=pytest.mark.skipif(library() is None, reason="this machine has no AVX2, or no C++ compiler")
    ),
    "torch",
]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def rank_of(kind: str, config: ArcticConfig, window: Window, dtype: torch.dtype = torch.float32) -> Compute:
    """A rank whose cache holds what is not a number until it is written to; the compiled one has two tensor ranks."""
    cache = PagedCache(
        range(config.num_hidden_layers),
        blocks=60,
        block_size=BLOCK,
        heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        dtype=dtype,
        window=window,
    )
    for layer in range(config.num_hidden_layers):
        for kept in cache.tensors(layer).values():
            kept.fill_(torch.nan)
    model = random_model(config)
    if kind == "torch":
        return TorchRank(model, cache)
    code = library()
    assert code is not None
    return KernelRank(code, model, cache, 2, [ANYWHERE] * 2)


class Table:
    """The block table of one sequence, kept as the scheduler keeps it; `first` is its first block."""

    def __init__(self, window: Window, first: int = 0) -> None:
        self._window = window
        count = window.blocks(BLOCK)
        self._blocks = [first + (index * 7 + 3) % count if count % 7 else first + index for index in range(count)]
        self._dropped = 0
        self.at = 0

    def skip(self, blocks: int) -> None:
        """Go on so many blocks after the first; those that the next tokens look back to are there, and hold nothing."""
        self.at, self._dropped = blocks * BLOCK, max(blocks - 2 - self._window.size // BLOCK, 0)

    def part(self, length: int) -> Part:
        end = self.at + length
        self._dropped = self._window.slide(self._blocks, self._dropped, end, BLOCK)
        part = Part(self.at, (0,) * length, tuple(self._blocks), None, dropped=self._dropped)
        self.at = end
        return part


class Definition:
    """Attention over the whole sequence: what each token sees by a mask, and every position that within the cache.

    Queries and keys come without rotation.
    """

    def __init__(self, config: ArcticConfig, window: Window) -> None:
        self._frequencies = rotary_frequencies(config, length=config.max_position_embeddings)
        self._window = window

    def __call__(self, layer: int, q_BTNH: Tensor, k_BTGH: Tensor, v_BTGH: Tensor) -> Tensor:
        _, length, heads, size = q_BTNH.shape
        shared = heads // k_BTGH.shape[2]
        visible = attention_mask(*[torch.arange(length)] * 2, self._window.size, self._window.sinks)
        rows = []
        for at in range(length):
            seen = visible[at].nonzero().flatten()
            rotation = rotation_of(torch.arange(len(seen)), self._frequencies)
            keys = rotate(k_BTGH[0, seen], rotation).double().repeat_interleave(shared, dim=1)
            query = rotate(q_BTNH[0, at : at + 1], rotation_of(torch.tensor([len(seen) - 1]), self._frequencies))
            weights = torch.einsum("nh,lnh->nl", query[0].double(), keys).mul(size**-0.5).softmax(-1)
            values = v_BTGH[0, seen].double().repeat_interleave(shared, dim=1)
            rows.append(torch.einsum("nl,lnh->nh", weights, values))
        return torch.stack(rows)[None].float()


def inputs(config: ArcticConfig, length: int) -> Tensor:
    torch.manual_seed(3)
    return torch.randn(length, config.hidden_size)


@pytest.mark.parametrize("kind", RANKS)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("config", [CONFIG, YARN, ODD], ids=["plain", "yarn", "odd"])
def test_it_computes_what_the_definition_says(kind: str, window: Window, config: ArcticConfig) -> None:
    x = inputs(config, 300)
    zeros = torch.zeros(1, len(x), dtype=torch.long)  # no rotation, but YaRN's magnitude
    expected, _ = random_model(config).run_layers(x[None].clone(), zeros, Definition(config, window))
    table, rank = Table(window), rank_of(kind, config, window)
    got = [rank.run([table.part(len(piece))], piece.clone()).clone() for piece in x.split([200, 1, 1, 98])]
    torch.testing.assert_close(torch.cat(got), expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", RANKS)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_a_row_has_the_same_bits_in_any_pieces_and_company(kind: str, window: Window) -> None:
    x, kept = inputs(CONFIG, 330), torch.float8_e4m3fn if window.sinks else torch.bfloat16
    lone, rank = Table(window), rank_of(kind, CONFIG, window, kept)
    pieces = x.split([CHUNK, 330 - CHUNK])
    expected = torch.cat([rank.run([lone.part(len(piece))], piece.clone()).clone() for piece in pieces])
    # Two of the same, one behind the other, in pieces of other sizes.
    tables = [Table(window), Table(window, first=30)]
    rank = rank_of(kind, CONFIG, window, kept)
    sizes, turn = [(1, 16), (9, 1), (31, 2), (1, 1), (5, 64)], 0
    while any(table.at < len(x) for table in tables):
        step = []
        for table, size in zip(tables, sizes[turn % len(sizes)], strict=True):
            begin, end = table.at, min(table.at + size, len(x))
            if begin < end:
                step.append((begin, end, table.part(end - begin)))
        rows = torch.cat([x[begin:end] for begin, end, _ in step])
        got = rank.run([part for _, _, part in step], rows)
        wanted = torch.cat([expected[begin:end] for begin, end, _ in step])
        assert torch.equal(got, wanted)
        turn += 1


@pytest.mark.parametrize("kind", RANKS)
def test_a_window_that_nothing_has_left_changes_no_bit(kind: str) -> None:
    x = inputs(CONFIG, 74)
    windows = [Window(70, 4), Window(1000, 0)]
    got = [rank_of(kind, CONFIG, window).run([Table(window).part(74)], x.clone()) for window in windows]
    assert torch.equal(*got)


@pytest.mark.parametrize("kind", RANKS)
def test_a_million_tokens_on_it_computes_as_at_the_start(kind: str) -> None:
    """Rows after what nobody sees any more, at once or a million and a billion tokens later."""
    window, x = Window(40, 4), inputs(CONFIG, 160)
    results = []
    for skipped in (0, 62_500, 2**26):
        table, rank = Table(window), rank_of(kind, CONFIG, window)
        rank.run([table.part(window.sinks)], x[: window.sinks].clone())
        table.skip(1 + skipped)
        results.append([rank.run([table.part(1)], row[None].clone()).clone() for row in x[window.sinks :]])
    settled = 3 * window.size  # three layers, each of which looks a window back
    for other in results[1:]:
        torch.testing.assert_close(torch.cat(other[settled:]), torch.cat(results[0][settled:]), rtol=1e-4, atol=1e-4)
