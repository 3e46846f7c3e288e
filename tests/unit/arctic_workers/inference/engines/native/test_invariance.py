"""What a token gets must not depend, to the last bit, on what shares its step; on whatever machine this runs."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from arctic_model.attention import grouped_attention
from arctic_model.config import ArcticConfig
from arctic_model.fp8 import DTYPE, dequantize, quantize, quantize_model
from arctic_model.layers import MLP, RMSNorm
from arctic_model.moe import MoE
from arctic_workers.inference.engines.native.cache import PagedAttend, PagedCache, attend
from arctic_workers.inference.engines.native.invariant import make_invariant
from arctic_workers.inference.engines.native.step import Part

CONFIG = ArcticConfig.preset("arctic-tiny").replace(hidden_size=96, num_attention_heads=6, intermediate_size=75)
ROWS = 70
Quantize = Callable[[nn.Module], None]
FORMS = [
    pytest.param(None, id="plain"),
    pytest.param(quantize_model, id="fp8"),
    pytest.param(partial(quantize_model, block=(64, 40)), id="fp8 by block"),
]
# As on an Intel processor without AVX-512, whichever this one is.
AVX2_ALONE = """
import torch
from arctic_workers.inference.engines.native.invariant import InvariantLinear, Weight
for threads in (1, 2):
    torch.set_num_threads(threads)
    for inner, outer in ((64, 128), (576, 1536), (1000, 7)):
        linear, x = InvariantLinear(Weight(torch.randn(outer, inner), None, None)), torch.randn(200, inner)
        for rows in (7, 48, 80, 200):
            assert torch.equal(linear(x[:rows])[:1], linear(x[:1])), (threads, inner, outer, rows)
"""


def layer(name: str) -> nn.Module:
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {
        "linear": nn.Linear(96, 250, bias=False),
        "wide linear": nn.Linear(1024, 96, bias=False),
        "mlp": MLP(96, 75),
        "norm": RMSNorm(96, 1e-5),
        "experts": MoE(CONFIG),
    }
    module = nn.Sequential(made[name])
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.requires_grad_(False)


@pytest.mark.processes
def test_a_row_has_the_same_bits_where_an_intel_processor_has_avx2_alone() -> None:
    """In a process of its own: MKL chooses what it computes by once."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MKL_")}
    done = subprocess.run(
        [sys.executable, "-c", AVX2_ALONE],
        env={**environment, "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "threads"),
    [("linear", 1), ("linear", 2), ("wide linear", 1), ("wide linear", 2), ("mlp", 1), ("norm", 1), ("experts", 1)],
)
@pytest.mark.parametrize("fp8", FORMS)
def test_a_row_has_the_same_bits_alone_and_among_others(name: str, fp8: Quantize | None, threads: int) -> None:
    module = layer(name)
    plain = layer(name)
    if fp8 is not None:
        fp8(module)
        fp8(plain)
    make_invariant(module, working_copy=True)
    x = torch.randn(ROWS, 1024 if name == "wide linear" else 96)

    def run(rows: torch.Tensor, of: nn.Module = module) -> torch.Tensor:
        out = of(rows[None])
        result: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return result[0]

    torch.set_num_threads(threads)
    try:
        together = run(x)
        torch.testing.assert_close(together, run(x, plain), rtol=1e-4, atol=1e-4)
        for count in [*range(1, 18), 33, 69]:
            for start in (0, ROWS - count):
                assert torch.equal(run(x[start : start + count].clone()), together[start : start + count])
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("fp8", FORMS)
def test_weights_that_stay_narrow_give_the_same_bits(fp8: Quantize | None) -> None:
    narrow, wide = layer("experts"), layer("experts")
    x = torch.randn(1, 9, 96)
    for module, working_copy in ((narrow, False), (wide, True)):
        if fp8 is not None:
            fp8(module)
        else:
            module.bfloat16()
        make_invariant(module, working_copy=working_copy)
    assert torch.equal(narrow(x)[0], wide(x)[0])


def cached(
    lengths: list[int], kept: torch.dtype, *, poison: bool = False
) -> tuple[PagedCache, list[tuple[int, ...]], torch.Tensor]:
    """A cache with room for such sequences in scattered blocks, and queries, keys and values for each token."""
    torch.manual_seed(1)
    blocks = [-(-length // 16) for length in lengths]
    cache = PagedCache(range(1), blocks=sum(blocks) + 3, block_size=16, heads=2, head_dim=16, dtype=kept)
    if poison:
        for tensor in cache.tensors(0).values():
            tensor.fill_(torch.nan)
    order = torch.randperm(sum(blocks) + 3).tolist()
    tables = []
    for count in blocks:
        tables.append(tuple(order[:count]))
        order = order[count:]
    return cache, tables, torch.randn(sum(lengths), 10, 16)


def run(cache: PagedCache, parts: list[Part], qkv: torch.Tensor) -> torch.Tensor:
    return PagedAttend(cache, parts)(0, qkv[None, :, :6], qkv[None, :, 6:8], qkv[None, :, 8:])[0]


def split(values: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    return list(values.split(lengths))


def whole_parts(lengths: list[int], tables: list[tuple[int, ...]]) -> list[Part]:
    return [Part(0, (0,) * length, table, None) for length, table in zip(lengths, tables, strict=True)]


KEPT = [torch.bfloat16, DTYPE]


@pytest.mark.parametrize("kept", KEPT)
def test_attention_over_pages_is_attention(kept: torch.dtype) -> None:
    lengths = [1, 40, 150]
    cache, tables, qkv = cached(lengths, kept, poison=True)
    parts = whole_parts(lengths, tables)
    keys_and_values = qkv[:, 6:]
    rounded = dequantize(*quantize(keys_and_values)) if kept == DTYPE else keys_and_values.to(kept).float()
    rounded = torch.cat((qkv[:, :6], rounded), dim=1)
    for got, own in zip(split(run(cache, parts, qkv), lengths), split(rounded, lengths), strict=True):
        expected = grouped_attention(own[None, :, :6], own[None, :, 6:8], own[None, :, 8:])[0]
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_keys_and_values_in_fp8_cost_attention_little(size: float) -> None:
    """e4m3 is off by at most a sixteenth: averaged over a sequence, 4% of what comes out, as a root mean square."""
    lengths = [1, 40, 150]
    found = []
    for kept in (torch.float32, DTYPE):
        cache, tables, qkv = cached(lengths, kept)
        qkv[:, 8:] *= size
        found.append(run(cache, whole_parts(lengths, tables), qkv))
    assert 0 < (found[1] - found[0]).norm() < 0.04 * found[0].norm()


@pytest.mark.parametrize("kept", KEPT)
def test_attention_has_the_same_bits_in_any_pieces_and_company(kept: torch.dtype) -> None:
    lengths = [1, 40, 150, 131]
    cache, tables, qkv = cached(lengths, kept)
    expected = split(run(cache, whole_parts(lengths, tables), qkv), lengths)
    own = split(qkv, lengths)
    cache, _, _ = cached(lengths, kept, poison=True)
    # Each sequence in pieces of another size, so that each step has other company; the last one token by token.
    sizes = [1, 7, 64, 1]
    done = [0] * len(lengths)
    got: list[list[torch.Tensor]] = [[] for _ in lengths]
    while any(at < length for at, length in zip(done, lengths, strict=True)):
        step, rows = [], []
        for index, length in enumerate(lengths):
            end = min(done[index] + sizes[index], length)
            if end > done[index]:
                step.append((index, Part(done[index], (0,) * (end - done[index]), tables[index], None)))
                rows.append(own[index][done[index] : end])
                done[index] = end
        out = run(cache, [part for _, part in step], torch.cat(rows))
        for (index, _), piece in zip(step, split(out, [len(row) for row in rows]), strict=True):
            got[index].append(piece)
    for pieces, one in zip(got, expected, strict=True):
        assert torch.equal(torch.cat(pieces), one)


def test_hidden_keys_add_nothing_even_if_they_are_not_numbers() -> None:
    q, k, v = torch.randn(1, 1, 6, 16), torch.randn(2, 1, 64, 16), torch.randn(2, 1, 64, 16)
    k[:, :, 5:], v[:, :, 5:] = torch.inf, torch.nan
    out = attend(q, k, v, (torch.arange(64) < 5)[None, None])
    torch.testing.assert_close(
        out,
        grouped_attention(q, *(x[:, :, :5].permute(1, 2, 0, 3) for x in (k, v)), torch.ones(1, 5, dtype=torch.bool)),
    )
