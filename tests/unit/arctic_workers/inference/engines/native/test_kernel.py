"""The compiled code against torch, and against itself in other company."""

import copy
import ctypes
import functools
import os
import resource
import runpy
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from arctic_model import fp8
from arctic_model.config import ArcticConfig
from arctic_model.fp8 import Fp8Linear, dequantize, quantize, quantize_model
from arctic_model.model import ArcticModel
from arctic_workers.inference.engines.native.cache import PagedAttend, PagedCache
from arctic_workers.inference.engines.native.kernel import library as libraries
from arctic_workers.inference.engines.native.kernel import sources
from arctic_workers.inference.engines.native.kernel.library import library
from arctic_workers.inference.engines.native.kernel.nodes import ANYWHERE, Cpus
from arctic_workers.inference.engines.native.kernel.panels import Panels
from arctic_workers.inference.engines.native.kernel.rank import KernelRank
from arctic_workers.inference.engines.native.step import Part

pytestmark = pytest.mark.skipif(library() is None, reason="this machine has no AVX2, or no C++ compiler")

EVEN = ArcticConfig.preset("arctic-tiny").replace(
    vocab_size=50,
    hidden_size=96,
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=80,
    num_hidden_layers=4,
    moe_layer_frequency=2,
    num_local_experts=5,
)
ODD = EVEN.replace(hidden_size=60, num_key_value_heads=3, intermediate_size=7, vocab_size=51, num_local_experts=3)
"""Nothing is a multiple of 8."""
LONG = EVEN.replace(hidden_size=568, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1, vocab_size=9)
"""Products take their inputs in two pieces."""
BLOCKS = 40
BLOCK = (16, 24)
"""Outputs and inputs that share a scale: the last ones are cut off."""


def random_model(config: ArcticConfig, weights: str) -> ArcticModel:
    model = ArcticModel(config)
    # After what building draws: among other weights two experts may be equally likely, up to rounding.
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        else:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    if weights == "bf16":
        model.bfloat16()
    if weights.startswith("fp8"):
        quantize_model(model, block=BLOCK if weights == "fp8 by block" else None)
    if weights == "fp8 with subnormals":
        for codes in (each.view(torch.uint8) for each in model.parameters() if each.dtype == torch.float8_e4m3fn):
            codes[torch.rand(codes.shape) < 0.1] &= 0x87
    return model.requires_grad_(False)


def empty_cache(config: ArcticConfig, dtype: torch.dtype, poison: float = 0.0) -> PagedCache:
    heads, layers = config.num_key_value_heads, range(config.num_hidden_layers)
    cache = PagedCache(layers, blocks=BLOCKS, block_size=16, heads=heads, head_dim=config.head_dim, dtype=dtype)
    for layer in layers:
        for kept in cache.tensors(layer).values():
            kept.fill_(poison)
    return cache


def kernel(
    model: ArcticModel,
    cache: PagedCache,
    threads: int = 2,
    cpus: Sequence[Cpus] = (ANYWHERE,),
    code: ctypes.CDLL | None = None,
    *,
    whole_experts: bool = False,
    rounds: bool = False,
) -> KernelRank:
    code = code or library()
    assert code is not None
    return KernelRank(code, copy.deepcopy(model), cache, threads, cpus, whole_experts=whole_experts, rounds=rounds)


def found_compiler() -> str:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("this machine has no C++ compiler")
    return compiler


VARIANTS = {
    "avx512_by_avx2": ("-include", str(Path(__file__).parent / "avx512_by_avx2.h")),
    "avx2_of_another_vendor": ("-D__builtin_cpu_is(vendor)=!__builtin_cpu_is(vendor)",),
}
"""Paths that this processor would not take, as it can run them: how each is compiled."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compiles a variant."""
    flags = ("-std=c++20", "-Og", "-ffp-contract=off", "-mavx2", "-mfma", "-fPIC", "-shared", "-pthread")
    source = Path(libraries.__file__).parent / "kernel.cpp"

    @functools.cache
    def compile_variant(name: str) -> Path:
        made = tmp_path_factory.mktemp(name) / "libkernel.so"
        # In a namespace of its own: what a function finds out once, it finds out for all libraries of a process.
        own = (*VARIANTS[name], f"-Darctic={name}", f'-DARCTIC_SOURCES="{sources.digest()}"')
        subprocess.run([found_compiler(), *flags, *own, "-o", made, source], check=True)
        return made

    return compile_variant


BUILT = {"avx2": libraries.AVX2, "avx512": libraries.AVX512, "avx512_bf16": libraries.AVX512_BF16}


@pytest.fixture(params=[*BUILT, *VARIANTS])
def code(request: pytest.FixtureRequest, compiled: Callable[[str], Path]) -> ctypes.CDLL:
    """Each path of the compiled code, forced."""
    loaded = libraries.load(BUILT.get(request.param) or compiled(request.param))
    if loaded is None:
        pytest.skip(f"this processor has not all of {request.param}")
    return loaded


rounding = pytest.mark.parametrize("code", ["avx512_bf16", "avx512_by_avx2"], indirect=True)
"""The paths that multiply rows in bf16."""


PARTS = [
    Part(0, tuple(range(1, 30)), (3, 5), None),
    Part(0, (7,), (9,), None),
    Part(0, tuple(range(2, 42)), (11, 1, 20), None),
]


def tasks() -> set[int]:
    """Return the threads of this process."""
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}


def until_gone(before: set[int]) -> None:
    """Wait until there are no threads but those before: Linux shows one for a moment after it has been joined."""
    deadline = time.monotonic() + 60
    while more := tasks() - before:
        assert time.monotonic() < deadline, f"{len(more)} threads are left"
        time.sleep(0.01)


@contextmanager
def memory_for(count: int) -> Iterator[None]:
    """So many bytes more are all that this process may take."""
    limit, most = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + count, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))


def embedded(model: ArcticModel, parts: list[Part]) -> Tensor:
    return model.embed(torch.tensor([token for part in parts for token in part.tokens])).float()


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("config", [EVEN, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("weights", ["fp8", "fp8 by block", "bf16", "fp32"])
@pytest.mark.parametrize(
    # Rounding may fall the other way for a key that differs in its last bit.
    ("kept", "tolerance"),
    [(torch.float32, 1e-5), (torch.bfloat16, 3e-3), (torch.float8_e4m3fn, 3e-2)],
)
def test_it_computes_what_torch_computes(
    config: ArcticConfig, weights: str, kept: torch.dtype, tolerance: float
) -> None:
    model = random_model(config, weights)
    reference = copy.deepcopy(model).float() if weights == "bf16" else model
    x = embedded(reference, PARTS)
    positions = torch.cat([torch.arange(part.start, part.end) for part in PARTS])
    attend = PagedAttend(empty_cache(config, kept), PARTS)
    expected = reference.run_layers(x[None].clone(), positions[None], attend)[0][0]
    rank = kernel(model, empty_cache(config, kept))
    got = rank.run(PARTS, x.clone())
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    rows = [3, 0, len(got) - 1]
    logits, likeliest = rank.logits(got, rows)
    torch.testing.assert_close(logits, reference.logits(got[rows]), rtol=1e-5, atol=1e-5)
    assert likeliest == logits.argmax(-1).tolist()


@pytest.mark.parametrize("config", [EVEN, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("weights", ["fp8", "fp8 with subnormals", "fp8 by block", "bf16", "fp32"])
@pytest.mark.parametrize(("piece", "kept"), [(1, torch.bfloat16), (2, torch.float8_e4m3fn), (5, torch.bfloat16)])
def test_a_row_has_the_same_bits_in_any_pieces_company_and_threads(
    config: ArcticConfig, weights: str, piece: int, kept: torch.dtype
) -> None:
    model = random_model(config, weights)
    x = embedded(model, PARTS)
    together = kernel(model, empty_cache(config, kept)).run(PARTS, x.clone())
    # What a freed block still holds reaches nobody.
    alone = kernel(model, empty_cache(config, kept, torch.nan), threads=1)
    row = 0
    for part in PARTS:
        for start in range(0, len(part.tokens), piece):
            tokens = part.tokens[start : start + piece]
            got = alone.run([Part(start, tokens, part.blocks, None)], x[row : row + len(tokens)].clone())
            assert torch.equal(got, together[row : row + len(tokens)])
            assert torch.equal(alone.logits(got, [0])[0], alone.logits(together, [row])[0])
            row += len(tokens)


def test_rows_that_do_not_stay_near_together_have_the_same_bits() -> None:
    """A prompt that fills the cache has more rows than are computed together where the second cache has 2 MiB."""
    model, tokens = random_model(LONG, "fp8"), [place % 9 for place in range(16 * BLOCKS)]
    whole = Part(0, tuple(tokens), tuple(range(BLOCKS)), None)
    together = kernel(model, empty_cache(LONG, torch.bfloat16)).run([whole], None)
    rank = kernel(model, empty_cache(LONG, torch.bfloat16))
    pieces = [Part(start, tuple(tokens[start : start + 40]), whole.blocks, None) for start in range(0, len(tokens), 40)]
    assert torch.equal(torch.cat([rank.run([piece], None) for piece in pieces]), together)


@pytest.mark.parametrize("config", [EVEN, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("weights", ["fp8", "bf16", "fp32"])
@pytest.mark.parametrize(("tensor", "threads"), [(2, 2), (2, 3), (3, 3), (3, 4)])
@pytest.mark.parametrize("whole_experts", [False, True], ids=["slices", "whole experts"])
def test_tensor_ranks_change_no_bit(
    config: ArcticConfig, weights: str, tensor: int, threads: int, whole_experts: bool
) -> None:
    """Of the smallest weights some rank has nothing, and of two key-value heads one of three ranks has none."""
    model = random_model(config, weights)
    x = embedded(model, PARTS)
    after = [Part(len(part.tokens), (7,), part.blocks, None) for part in PARTS]

    def answers(rank: KernelRank) -> list[Tensor]:
        prompts = rank.run(PARTS, x.clone())
        decoded = rank.run(after, None)
        return [prompts, rank.logits(prompts, [3, 0, 40])[0], decoded, rank.logits(decoded, [1])[0]]

    one = answers(kernel(model, empty_cache(config, torch.bfloat16), threads=1))
    cache = empty_cache(config, torch.bfloat16, torch.nan)
    cut = answers(kernel(model, cache, threads, [ANYWHERE] * tensor, whole_experts=whole_experts))
    assert all(map(torch.equal, cut, one))


def test_a_weight_is_cut_over_the_tensor_ranks_or_its_owners_alone() -> None:
    code = library()
    if code is None:
        pytest.skip("this machine has no AVX2, or no C++ compiler")
    panels, weight = Panels(code, [ANYWHERE] * 3), torch.zeros(44, 8)
    of_ranks = [
        [(matrix.first, matrix.outputs) for matrix in panels.matrices(weight, owner=owner)] for owner in (None, 0, 1, 2)
    ]
    assert of_ranks == [
        [(0, 16), (2, 16), (4, 12)],
        [(0, 44), (6, 0), (6, 0)],
        [(0, 0), (0, 44), (6, 0)],
        [(0, 0), (0, 0), (0, 44)],
    ]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this machine has one CPU")
def test_the_threads_of_a_tensor_rank_stay_on_its_cpus_and_the_caller_only_for_a_step() -> None:
    model = random_model(EVEN, "fp8")
    x = embedded(model, PARTS)
    one = kernel(model, empty_cache(EVEN, torch.bfloat16)).run(PARTS, x.clone())
    allowed = os.sched_getaffinity(0)
    first, second = (frozenset({cpu}) for cpu in sorted(allowed)[:2])
    before = tasks()
    rank = kernel(model, empty_cache(EVEN, torch.bfloat16), 4, [first, second])
    assert torch.equal(rank.run(PARTS, x.clone()), one)
    assert sorted(map(sorted, map(os.sched_getaffinity, tasks() - before))) == [[*first], [*second], [*second]]
    assert os.sched_getaffinity(0) == allowed


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 13])
def test_every_code_of_e4m3_is_decoded_exactly(code: ctypes.CDLL, rows: int) -> None:
    """All 254 that are numbers, subnormals and -0 too, by each path of the product and at each place of a panel."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0  # not a number
    config = ODD.replace(vocab_size=256, num_hidden_layers=1)
    model = random_model(config, "fp8")
    head = model.lm_head
    assert isinstance(head, Fp8Linear)
    assert model.model.norm is not None
    values = torch.zeros(256, config.hidden_size, dtype=torch.uint8)
    for place in range(8):
        values[:, place] = codes.roll(place)
    head.weight.copy_(values.view(torch.float8_e4m3fn))
    head.weight_scale.fill_(1.0)
    model.model.norm.weight.fill_(1.0)
    rank = kernel(model, empty_cache(config, torch.bfloat16), code=code)
    for place in range(8):
        x = torch.zeros(rows, config.hidden_size)
        x[:, place] = 1.0
        # The norm makes of the one input another number, the same for each code.
        factor = float(model.model.norm(x)[0, place])
        expected = (codes.roll(place).view(torch.float8_e4m3fn).float() * factor).expand(rows, -1)
        torch.testing.assert_close(rank.logits(x, list(range(rows)))[0], expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("code", ["avx512", "avx512_bf16", *VARIANTS], indirect=True)
@pytest.mark.parametrize("config", [EVEN, ODD, LONG], ids=["even", "odd", "long"])
@pytest.mark.parametrize("weights", ["fp8", "fp8 with subnormals", "fp8 by block", "bf16", "fp32"])
def test_all_paths_give_the_bits_of_avx2(code: ctypes.CDLL, config: ArcticConfig, weights: str) -> None:
    model = random_model(config, weights)
    tokens = torch.arange(40) % config.vocab_size
    x = model.embed(tokens).float()
    cached = (torch.bfloat16, torch.float32)[config is ODD]
    narrow, wide = (
        kernel(model, empty_cache(config, cached), code=path) for path in (libraries.load(libraries.AVX2), code)
    )
    for rows in range(1, 41):
        part = Part(0, tuple(tokens[:rows].tolist()), (3, 5, 7), None)
        expected, got = (rank.run([part], x[:rows].clone()) for rank in (narrow, wide))
        assert torch.equal(got.view(torch.int32), expected.view(torch.int32))
        expected, got = (rank.logits(expected, range(rows))[0] for rank in (narrow, wide))
        assert torch.equal(got.view(torch.int32), expected.view(torch.int32))


@rounding
@pytest.mark.parametrize("rows", [1, 3, 13])
def test_rows_in_bf16_are_multiplied_with_each_code_of_e4m3_as_it_is(code: ctypes.CDLL, rows: int) -> None:
    """All 256, at each place of a panel, by an input that bf16 rounds."""
    config = ODD.replace(vocab_size=256, num_hidden_layers=1)
    model = random_model(config, "fp8")
    head, norm = model.lm_head, model.model.norm
    assert isinstance(head, Fp8Linear)
    assert norm is not None
    codes, values = torch.arange(256, dtype=torch.uint8), torch.zeros(256, config.hidden_size, dtype=torch.uint8)
    head.weight_scale.fill_(1.0)
    for place in range(8):
        head.weight.copy_(values.index_copy(1, torch.tensor([place]), codes[:, None]).view(torch.float8_e4m3fn))
        # Of inputs of one size the norm makes its own weights.
        norm.weight.fill_(0.75 * (1 + 0.3 * 2**-7))
        rank = kernel(model, empty_cache(config, torch.bfloat16), code=code, rounds=True)
        logits, _ = rank.logits(torch.ones(rows, config.hidden_size), list(range(rows)))
        expected = codes.view(torch.float8_e4m3fn).float() * 0.75
        torch.testing.assert_close(logits, expected.expand(rows, -1), rtol=0, atol=0, equal_nan=True)


@rounding
@pytest.mark.parametrize("config", [EVEN, ODD, LONG], ids=["even", "odd", "long"])
@pytest.mark.parametrize("weights", ["fp8", "fp8 by block"])
def test_rows_in_bf16_are_the_rounded_ones(
    code: ctypes.CDLL, config: ArcticConfig, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every weight in FP8; the router gets all bits."""
    model = random_model(config, weights)
    positions = torch.cat([torch.arange(part.start, part.end) for part in PARTS])
    x = torch.randn(len(positions), config.hidden_size)
    results, exact = [], fp8.scaled_linear
    for linear in (exact, lambda x, *rest: exact(x.bfloat16().float(), *rest)):
        monkeypatch.setattr(fp8, "scaled_linear", linear)
        attend = PagedAttend(empty_cache(config, torch.float32), PARTS)
        hidden = model.run_layers(x[None].clone(), positions[None], attend)[0][0]
        results.append((hidden, model.logits(hidden)))
    exactly, expected = results
    rank = kernel(model, empty_cache(config, torch.float32), code=code, rounds=True)
    hidden = rank.run(PARTS, x.clone())
    logits, _ = rank.logits(hidden, range(len(hidden)))
    # Rounding may fall the other way for a number that differs in its last bit: seldom, and not for most of a row.
    for got, wanted, other in zip((hidden, logits), expected, exactly, strict=True):
        assert (got - wanted).abs().median() < 0.02 * (other - wanted).abs().median()


@rounding
@pytest.mark.parametrize("config", [EVEN, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("weights", ["fp8", "fp8 by block"])
@pytest.mark.parametrize(("tensor", "whole_experts"), [(1, False), (2, False), (3, True)])
def test_a_row_in_bf16_has_the_same_bits_in_any_pieces_company_threads_and_tensor_ranks(
    code: ctypes.CDLL, config: ArcticConfig, weights: str, tensor: int, whole_experts: bool
) -> None:
    model = random_model(config, weights)
    x = embedded(model, PARTS)
    ranks = [ANYWHERE] * tensor
    cache = empty_cache(config, torch.bfloat16)
    together = kernel(model, cache, 3, ranks, code, whole_experts=whole_experts, rounds=True).run(PARTS, x.clone())
    alone = kernel(model, empty_cache(config, torch.bfloat16, torch.nan), 1, code=code, rounds=True)
    row = 0
    for part in PARTS:
        for start, token in enumerate(part.tokens):
            got = alone.run([Part(start, (token,), part.blocks, None)], x[row : row + 1].clone())
            assert torch.equal(got, together[row : row + 1])
            assert torch.equal(alone.logits(got, [0])[0], alone.logits(together, [row])[0])
            row += 1


def test_the_processor_that_multiplies_bf16_does_so_to_the_bits_that_its_maker_describes(
    compiled: Callable[[str], Path],
) -> None:
    if not libraries.multiplies_bf16():
        pytest.skip("this processor multiplies no bf16")
    model = random_model(LONG, "fp8")
    x = torch.randn(sum(len(part.tokens) for part in PARTS), LONG.hidden_size)
    paths = (libraries.load(libraries.AVX512_BF16), libraries.load(compiled("avx512_by_avx2")))
    one, other = (kernel(model, empty_cache(LONG, torch.bfloat16), code=path, rounds=True) for path in paths)
    assert torch.equal(one.run(PARTS, x.clone()), other.run(PARTS, x.clone()))


def scaled_inputs(config: ArcticConfig) -> Tensor:
    """Rows from the smallest numbers to great ones, zeros among them."""
    torch.manual_seed(4)
    rows = sum(len(part.tokens) for part in PARTS)
    x = torch.randn(rows, config.hidden_size) * torch.logspace(-38, 4, rows)[:, None]
    x[5] = 0.0
    return x


@pytest.mark.parametrize("config", [EVEN, ODD], ids=["even", "odd"])
def test_a_cache_in_fp8_holds_what_torch_would_round_keys_and_values_to(config: ArcticConfig) -> None:
    model, x = random_model(config, "fp32"), scaled_inputs(config)
    caches = [empty_cache(config, kept) for kept in (torch.float32, torch.float8_e4m3fn)]
    for cache in caches:
        kernel(model, cache).run(PARTS, x.clone())
    exact, rounded = (cache.tensors(0) for cache in caches)  # the first layer's don't depend on the cache
    slots = [slot for part in PARTS for slot in caches[0].slots(part)]
    assert (exact["keys"][:, slots].abs().amax(-1) < 1e-30).any()
    for name in ("key", "value"):
        values, scale = quantize(exact[f"{name}s"][:, slots])
        assert torch.equal(rounded[f"{name}_scales"][:, slots], scale)
        assert torch.equal(rounded[f"{name}s"].view(torch.uint8)[:, slots], values.view(torch.uint8))


def test_what_lies_between_two_codes_goes_to_the_even_one() -> None:
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    between = torch.cat((codes[1:] + codes[:-1], torch.tensor([2 * 448.0, 2.0]))) / 2
    config = EVEN.replace(
        hidden_size=256, num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=1, rms_norm_eps=1e-12
    )
    model = random_model(config, "fp32")
    attention = model.layers[0].self_attn
    model.layers[0].input_layernorm.weight.fill_(1.0)
    for name in ("k_proj", "v_proj"):  # of inputs that are ones the first alone counts
        weight = attention.get_submodule(name).get_parameter("weight").zero_()
        weight[:, 0] = torch.cat((between, -between))
    cache = empty_cache(config, torch.float8_e4m3fn)
    kernel(model, cache).run([Part(0, (1,), (0,), None)], torch.ones(1, 256))
    expected = torch.stack((between, -between)).to(torch.float8_e4m3fn).view(torch.uint8)
    for name in ("keys", "values"):
        assert torch.equal(cache.tensors(0)[name][:, 0].view(torch.uint8), expected)


@pytest.mark.parametrize("config", [EVEN, ODD], ids=["even", "odd"])
def test_what_a_cache_in_fp8_holds_is_decoded_exactly(config: ArcticConfig) -> None:
    """All codes, with scales from the smallest to great ones; to the same bits as the numbers in fp32."""
    config = config.replace(num_hidden_layers=1)
    model = random_model(config, "fp32")
    for name in ("k_proj", "v_proj"):  # a token's own keys and values are zeros, which any format holds
        model.layers[0].self_attn.get_submodule(name).get_parameter("weight").zero_()
    coded, plain = (empty_cache(config, kept) for kept in (torch.float8_e4m3fn, torch.float32))
    for name in ("key", "value"):
        codes, scales = coded.tensors(0)[f"{name}s"], coded.tensors(0)[f"{name}_scales"]
        bits = torch.randint(0, 256, codes.shape, dtype=torch.uint8)
        codes.view(torch.uint8).copy_(bits.where((bits & 0x7F) != 0x7F, 0))
        scales.copy_(torch.logspace(-45, 2 if name == "key" else 10, scales.numel()).view(scales.shape))
        plain.tensors(0)[f"{name}s"].copy_(dequantize(codes, scales))
    parts = [Part(15, (block,), (block,), None) for block in range(BLOCKS)]  # numbers of one size do not hide others
    for x in (embedded(model, parts), torch.zeros(BLOCKS, config.hidden_size)):
        results = [kernel(model, cache).run(parts, x.clone()) for cache in (coded, plain)]
        assert results[0].isfinite().all()
        assert results[0].any(dim=1).all()
        assert torch.equal(*results)


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
def test_what_is_no_number_stays_with_its_own_row(kept: torch.dtype, fault: float) -> None:
    model = random_model(EVEN, "fp8")
    x = embedded(model, PARTS)
    clean = kernel(model, empty_cache(EVEN, kept)).run(PARTS, x.clone())
    x[29, 3] = fault
    got = kernel(model, empty_cache(EVEN, kept)).run(PARTS, x.clone())
    assert torch.equal(got[:29], clean[:29])
    assert got[29].isnan().all()
    assert torch.equal(got[30:], clean[30:])


def test_a_rank_that_is_gone_ends_its_threads() -> None:
    before = tasks()
    rank = kernel(random_model(EVEN, "fp8"), empty_cache(EVEN, torch.bfloat16), threads=3)
    assert len(tasks() - before) == 2
    del rank
    until_gone(before)


def test_a_rank_whose_threads_have_no_memory_leaves_none_of_them() -> None:
    model, cache = random_model(EVEN, "fp8"), empty_cache(EVEN, torch.bfloat16)
    before = tasks()
    with memory_for(256 << 20), pytest.raises(MemoryError, match="threads"):
        kernel(model, cache, threads=4096)
    until_gone(before)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_step_for_which_a_thread_has_no_memory_says_so_and_the_next_one_runs(threads: int) -> None:
    config = EVEN.replace(hidden_size=128, num_attention_heads=64, num_key_value_heads=1)
    model = random_model(config, "fp8")
    x = embedded(model, PARTS)
    rank = kernel(model, empty_cache(config, torch.bfloat16), threads)
    expected = rank.run(PARTS, x.clone())
    position = 2 << 20  # scores of 64 heads are 512 MiB
    long = Part(position, (7,), (0,) * (position // 16 + 1), None)
    with memory_for(256 << 20), pytest.raises(MemoryError, match="tokenBudget"):
        rank.run([long], None)
    assert torch.equal(rank.run(PARTS, x.clone()), expected)


def test_code_of_other_sources_is_refused(tmp_path: Path) -> None:
    """Also where all structures are as they were, and the order of a panel alone is another."""
    supported = "int arctic_supported() { return 1; }"
    told = 'const char *arctic_sources() { return "another digest"; }'
    for name, content in (("older", supported), ("old", f"{supported} {told}")):
        (tmp_path / f"{name}.cpp").write_text(f'extern "C" {{ {content} }}')
        built = tmp_path / f"{name}.so"
        subprocess.run([found_compiler(), "-shared", "-fPIC", "-o", built, tmp_path / f"{name}.cpp"], check=True)
        with pytest.raises(RuntimeError, match=r"built from other sources .* sync --frozen --reinstall-package"):
            libraries.load(built)


@pytest.mark.parametrize("changed", ["products.h", "kernel.cpp"])
def test_a_change_of_any_source_makes_another_digest(tmp_path: Path, changed: str) -> None:
    for path in Path(sources.__file__).parent.glob("*.*"):
        shutil.copy(path, tmp_path)
    copied = runpy.run_path(str(tmp_path / "sources.py"))["digest"]()
    assert copied == sources.digest(), "wherever they are"
    with (tmp_path / changed).open("a") as file:
        file.write("// more")
    assert runpy.run_path(str(tmp_path / "sources.py"))["digest"]() != copied


def test_the_structures_are_those_of_the_compiled_code() -> None:
    code = library()
    assert code is not None
    code.arctic_sizes.restype = ctypes.POINTER(ctypes.c_int64)
    sizes = [ctypes.sizeof(structure) for structure in libraries.STRUCTURES]
    assert code.arctic_sizes()[: len(sizes)] == sizes


def test_code_that_this_machine_cannot_load_is_refused(tmp_path: Path) -> None:
    """Built on a machine with another processor or a newer C++ library, or half copied."""
    (tmp_path / "foreign.so").write_bytes(b"\x7fELF")
    with pytest.raises(RuntimeError, match=r"foreign\.so.*builds it anew"):
        libraries.load(tmp_path / "foreign.so")
