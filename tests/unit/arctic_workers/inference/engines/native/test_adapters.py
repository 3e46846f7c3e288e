"""Adapters beside the weights: by the compiled code and by torch, and through the whole engine."""

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from models import random_model
from torch import Tensor

from arctic_api.world import InferenceGroup
from arctic_model.config import ArcticConfig
from arctic_model.fp8 import quantize_model
from arctic_model.lora import A, B, merged, targets
from arctic_model.model import ArcticModel
from arctic_model.peft import Addition, write_adapter
from arctic_model.weights import load_weights
from arctic_workers.inference.engine import Refused, Request, Sampling
from arctic_workers.inference.engines.native.adapters import Adapter
from arctic_workers.inference.engines.native.cache import PagedCache
from arctic_workers.inference.engines.native.engine import NativeEngine
from arctic_workers.inference.engines.native.group import bring_up
from arctic_workers.inference.engines.native.kernel.library import library
from arctic_workers.inference.engines.native.kernel.nodes import ANYWHERE
from arctic_workers.inference.engines.native.kernel.rank import KernelRank
from arctic_workers.inference.engines.native.plan import plan_group
from arctic_workers.inference.engines.native.runner import Compute, TorchRank
from arctic_workers.inference.engines.native.step import Part

EVEN = ArcticConfig.preset("arctic-tiny").replace(
    vocab_size=50, hidden_size=96, num_attention_heads=6, num_key_value_heads=2, intermediate_size=80,
    num_hidden_layers=4, moe_layer_frequency=2, num_local_experts=5,
)  # fmt: skip
ODD = EVEN.replace(hidden_size=60, num_key_value_heads=3, intermediate_size=7, num_local_experts=3)
"""Nothing is a multiple of 8."""
PARTS = [
    Part(0, tuple(range(1, 30)), (3, 5), None, adapter=1),
    Part(0, (7, 8, 9), (9,), None),
    Part(0, tuple(range(2, 42)), (11, 1, 20), None, adapter=0),
    Part(0, tuple(range(2, 42)), (12, 2, 21), None, adapter=1),
]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def random_adapter(config: ArcticConfig, rank: int, seed: int) -> Adapter:
    """One that stands on all that it can but one matrix."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, (outputs, inputs) in targets(config).items():
        a = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
        made[name] = Addition(a, torch.randn(outputs, rank, generator=generator) * 0.5, 2 / rank)
    del made["model.layers.1.self_attn.k_proj"]
    return made


def with_merged(model: ArcticModel, adapter: Adapter) -> ArcticModel:
    model = copy.deepcopy(model)
    for name, added in adapter.items():
        weight = model.get_submodule(name).get_parameter("weight")
        weight.copy_(merged(weight, added.a, added.b, added.scale))
    return model


def empty_cache(config: ArcticConfig) -> PagedCache:
    heads, layers = config.num_key_value_heads, range(config.num_hidden_layers)
    cache = PagedCache(layers, blocks=40, block_size=16, heads=heads, head_dim=config.head_dim, dtype=torch.float32)
    for layer in layers:
        for kept in cache.tensors(layer).values():
            kept.fill_(0.0)
    return cache


def kernel(model: ArcticModel, threads: int = 2, tensor: int = 1) -> Compute:
    code = library()
    if code is None:
        pytest.skip("this machine has no AVX2, or no C++ compiler")
    return KernelRank(code, copy.deepcopy(model), empty_cache(model.config), threads, [ANYWHERE] * tensor)


def plain_torch(model: ArcticModel) -> Compute:
    return TorchRank(copy.deepcopy(model), empty_cache(model.config))


def rows_of(x: Tensor, part: int) -> Tensor:
    start = sum(len(each.tokens) for each in PARTS[:part])
    return x[start : start + len(PARTS[part].tokens)]


@pytest.mark.parametrize("make", [kernel, plain_torch])
@pytest.mark.parametrize("config", [EVEN, ODD], ids=["even", "odd"])
def test_each_part_has_its_own_adapter_and_the_base_keeps_its_bits(
    make: Callable[[ArcticModel], Compute], config: ArcticConfig
) -> None:
    model, adapters = random_model(config), [random_adapter(config, rank, rank) for rank in (3, 8)]
    adapted = make(model)
    adapted.adapt(adapters)
    got = adapted.run(PARTS, None)
    for index, part in enumerate(PARTS):
        alone = model if part.adapter < 0 else with_merged(model, adapters[part.adapter])
        expected = make(alone).run([Part(0, part.tokens, part.blocks, None)], None)
        if part.adapter < 0:
            assert torch.equal(rows_of(got, index), expected)
        else:
            torch.testing.assert_close(rows_of(got, index), expected, rtol=1e-4, atol=1e-4)
            assert not torch.allclose(
                expected, make(model).run([Part(0, part.tokens, part.blocks, None)], None), atol=0.1
            )


@pytest.mark.parametrize("make", [kernel, plain_torch])
@pytest.mark.parametrize("piece", [1, 7])
def test_a_row_with_an_adapter_has_the_same_bits_in_any_pieces_and_company(
    make: Callable[[ArcticModel], Compute], piece: int
) -> None:
    model, adapters = random_model(ODD), [random_adapter(ODD, rank, rank) for rank in (3, 8)]
    together, alone = make(model), make(model)
    for rank in (together, alone):
        rank.adapt(adapters)
    expected = together.run(PARTS, None)
    for index, part in enumerate(PARTS):
        for start in range(0, len(part.tokens), piece):
            tokens = part.tokens[start : start + piece]
            got = alone.run([Part(start, tokens, part.blocks, None, adapter=part.adapter)], None)
            assert torch.equal(got, rows_of(expected, index)[start : start + len(tokens)])


@pytest.mark.parametrize(("threads", "tensor"), [(1, 1), (3, 2)])
def test_threads_and_tensor_ranks_change_no_bit(threads: int, tensor: int) -> None:
    model, adapters = random_model(EVEN), [random_adapter(EVEN, rank, rank) for rank in (3, 8)]
    ranks = [kernel(model), kernel(model, threads, tensor)]
    for rank in ranks:
        rank.adapt(adapters)
    assert torch.equal(ranks[0].run(PARTS, None), ranks[1].run(PARTS, None))


def test_on_weights_in_fp8_the_additions_are_what_they_are() -> None:
    model, adapter = random_model(EVEN), random_adapter(EVEN, 4, 1)
    quantize_model(model)
    ranks = [kernel(model), plain_torch(model)]
    for rank in ranks:
        rank.adapt([adapter, adapter])
    torch.testing.assert_close(ranks[0].run(PARTS, None), ranks[1].run(PARTS, None), rtol=1e-4, atol=1e-4)


# --- the whole engine

MakeGroup = Callable[..., list[InferenceGroup]]
EXACT = {"weights": "fp32", "kvCache": "fp32"}


@asynccontextmanager
async def started(group: InferenceGroup) -> AsyncIterator[NativeEngine]:
    plan = plan_group(group)
    engine = NativeEngine(
        plan,
        lambda progress: bring_up(plan, group, 0, on_loss=pytest.fail, on_stop=pytest.fail, progress=progress),
        beat=lambda: None,
        on_failure=lambda error: pytest.fail(str(error)),
    )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def ask(engine: NativeEngine, prompt: list[int], adapter: str | None = None) -> list[int]:
    request = Request(tuple(prompt), Sampling(12, temperature=0.0), adapter=adapter)
    return [output.token async for output in engine.generate(request)]


def served(folder: Path) -> list[dict[str, str]]:
    return [{"name": name, "uri": f"file://{folder}/{name}"} for name in ("first", "second")]


@pytest.fixture
def adapters(make_group: MakeGroup, tmp_path: Path) -> dict[str, Adapter]:
    """Two adapters of the small model, written as peft has them."""
    config, made = plan_group(make_group(1)[0]).config, {}
    for seed, name in enumerate(("first", "second"), 1):
        adapter = random_adapter(config, 4, seed)
        (tmp_path / name).mkdir()
        tensors = {f"{at}.{A}.weight": added.a for at, added in adapter.items()}
        tensors |= {f"{at}.{B}.weight": added.b for at, added in adapter.items()}
        write_adapter(tmp_path / name, tensors, 4, 2.0, "")
        made[name] = adapter
    return made


async def test_adapters_share_batches_with_the_base_and_never_what_prompts_left_behind(
    make_group: MakeGroup, model_folder: Path, adapters: dict[str, Adapter], tmp_path: Path
) -> None:
    prompts = [[(index * 37 + place * 11) % 280 for place in range(20 + index)] for index in range(3)]
    sharing = {"prefixCaching": True, "maxSequences": 8}
    expected: dict[str | None, list[list[int]]] = {}
    config = ArcticConfig.from_folder(model_folder)
    for name in (None, *adapters):
        model = ArcticModel(config)
        load_weights(model, model_folder)
        if name is not None:
            model = with_merged(model, adapters[name])
        expected[name] = [greedy(model, prompt) for prompt in prompts]
    assert len({str(answers) for answers in expected.values()}) == 3
    asked = [(prompt, name) for prompt in prompts for name in expected]
    named = {"uri": "file:///models/tiny", "adapters": served(tmp_path)}
    [group] = make_group(1, quantization=EXACT, batching=sharing, model=named)
    async with started(group) as engine:
        for _ in range(2):  # the second time from blocks that are kept
            answers = await asyncio.gather(*(ask(engine, prompt, name) for prompt, name in asked))
            for (prompt, name), answer in zip(asked, answers, strict=True):
                assert answer == expected[name][prompts.index(prompt)], name


def greedy(model: ArcticModel, prompt: list[int]) -> list[int]:
    tokens = list(prompt)
    for _ in range(12):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_an_adapter_that_does_not_fit_the_model_is_refused_before_weights_are_read(
    make_group: MakeGroup, tmp_path: Path
) -> None:
    other = random_adapter(EVEN, 2, 0)
    (tmp_path / "first").mkdir()
    tensors = {f"{at}.{A}.weight": added.a for at, added in other.items()}
    write_adapter(tmp_path / "first", tensors | {f"{at}.{B}.weight": x.b for at, x in other.items()}, 2, 2.0, "")
    [group] = make_group(1, model={"uri": "file:///models/tiny", "adapters": served(tmp_path)[:1]})
    with pytest.raises(Refused, match=r"adapter first: .* (trained on another model|stands on nothing)"):
        bring_up(plan_group(group), group, 0, on_loss=pytest.fail, on_stop=pytest.fail, progress=lambda _: None)
