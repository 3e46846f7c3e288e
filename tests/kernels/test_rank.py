"""Whole steps of a rank of the GPU's, under Triton's interpreter, against the same in plain torch."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import random_model
from torch import Tensor

from arctic_model.config import ArcticConfig
from arctic_model.fp8 import DTYPE, quantize_model
from arctic_model.lora import targets
from arctic_model.model import ArcticModel
from arctic_model.peft import Addition
from arctic_workers.inference.engines.native import runner as runners
from arctic_workers.inference.engines.native.adapters import Adapter
from arctic_workers.inference.engines.native.cache import PagedCache
from arctic_workers.inference.engines.native.cuda import graphs, rank, routing, streams
from arctic_workers.inference.engines.native.cuda.rank import CudaRank
from arctic_workers.inference.engines.native.runner import Compute, Runner, TorchRank
from arctic_workers.inference.engines.native.step import Draw, Drawn, Known, Part
from arctic_workers.inference.engines.native.window import Window

CONFIG = ArcticConfig.preset("arctic-tiny").replace(
    vocab_size=40,
    hidden_size=32,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=24,
    num_hidden_layers=2,
    moe_layer_frequency=2,
    num_local_experts=4,
)
YARN = CONFIG.replace(rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64})
LINEAR = CONFIG.replace(rope_scaling={"type": "linear", "factor": 2.0})
GREEDY = Draw(0, 0.0, 1.0, 0, 2)
NUCLEUS = Draw(7, 0.9, 0.8, 10, None)
BLOCKS = {"a": (3, 5), "b": (9, 1), "c": (4, 2)}


def part(name: str, start: int, *tokens: int, how: Draw = GREEDY, **more: Any) -> Part:
    return Part(start, tokens, BLOCKS[name], how, **more)


STEPS = [
    [part("a", 0, *range(1, 10)), part("b", 0, 7, 8)],
    [part("a", 9, 3), part("b", 2, 5), part("c", 0, 1, how=NUCLEUS)],  # as of four, and recorded
    [part("a", 10, 30), part("b", 3, 6), part("c", 1, 2)],
    [part("a", 11, 4), part("b", 4, 9, 11, draws=2, known=Known((11,), 3))],
]
SHORT = [STEPS[0][1:], [part("b", 2, 5, how=NUCLEUS)]]
LONG = [STEPS[0][:1], [part("a", 9, 3)]]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The interpreter takes its time for programs that have nothing to do."""
    monkeypatch.setattr(graphs, "FEWEST_BLOCKS", 2)
    with torch.inference_mode():
        yield


def made_model(config: ArcticConfig, weights: str) -> ArcticModel:
    model = random_model(config)
    if weights == "bf16":
        model.bfloat16()
    if weights.startswith("fp8"):
        quantize_model(model, block=(24, 16) if weights == "fp8 by block" else None)
    return model


def empty_cache(config: ArcticConfig, dtype: torch.dtype, window: Window | None = None) -> PagedCache:
    """Holds what is not a number until it is written to."""
    layers = range(config.num_hidden_layers)
    heads, size = config.num_key_value_heads, config.head_dim
    cache = PagedCache(layers, blocks=10, block_size=8, heads=heads, head_dim=size, dtype=dtype, window=window)
    for layer in layers:
        for kept in cache.tensors(layer).values():
            kept.fill_(torch.nan)
    return cache


Make = Callable[[ArcticModel, PagedCache], Compute]
RANKS: list[Make] = [TorchRank, CudaRank]


def answers(
    make: Make, model: ArcticModel, cache: PagedCache, steps: Sequence[Sequence[Part]], adapters: Sequence[Adapter] = ()
) -> list[tuple[Tensor, Tensor, list[Drawn]]]:
    """Return hidden states, logits of all rows and chosen tokens of each step."""
    compute = make(copy.deepcopy(model), cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runners, "compute_of", lambda *_, **__: compute)
        runner = Runner(model, cache, adapters=adapters)
    found = []
    for parts in steps:
        x_TD = runner.run(parts, None)
        found.append((x_TD, compute.logits(x_TD, range(len(x_TD)))[0], runner.sample(parts, x_TD)))
    return found


def compare(
    model: ArcticModel,
    steps: Sequence[Sequence[Part]],
    kept: torch.dtype = torch.float32,
    window: Window | None = None,
    adapters: Sequence[Adapter] = (),
    tolerance: float = 1e-5,
) -> None:
    """Let both ranks compute the same steps, with the same tokens whatever they chose."""
    expected, got = (answers(make, model, empty_cache(model.config, kept, window), steps, adapters) for make in RANKS)
    for (x_TD, logits_TV, drawn), (gpu_TD, gpu_TV, gpu_drawn) in zip(expected, got, strict=True):
        torch.testing.assert_close(gpu_TD, x_TD, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(gpu_TV, logits_TV, rtol=tolerance, atol=tolerance)
        assert [one.token for one in gpu_drawn] == [one.token for one in drawn]
        for one, other in zip(gpu_drawn, drawn, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=10 * tolerance)
            assert [token for token, _ in one.top] == [token for token, _ in other.top]


def test_it_computes_what_torch_computes() -> None:
    """Prompts, single tokens, and both in a step."""
    compare(made_model(CONFIG, "fp8"), STEPS)


@pytest.mark.parametrize("weights", ["fp8 by block", "bf16", "fp32"])
def test_with_other_weights_it_does_too(weights: str) -> None:
    compare(made_model(CONFIG, weights), SHORT)


@pytest.mark.parametrize(
    # Rounding may fall the other way for a key that differs in its last bit.
    ("kept", "tolerance"),
    [(torch.bfloat16, 3e-3), (DTYPE, 3e-2)],
)
def test_with_narrow_keys_and_values_it_does_too(kept: torch.dtype, tolerance: float) -> None:
    compare(made_model(CONFIG, "fp8"), SHORT, kept, tolerance=tolerance)


@pytest.mark.parametrize(("config", "window"), [(YARN, Window(4, 3)), (LINEAR, Window(5, 0))], ids=["yarn", "linear"])
def test_behind_a_window_and_with_stretched_positions_it_does_too(config: ArcticConfig, window: Window) -> None:
    compare(made_model(config, "fp32"), LONG, window=window)


def test_weights_of_unlike_formats_compute_too() -> None:
    """As of a checkpoint that keeps some of its matrices in bf16."""
    model = made_model(CONFIG, "fp8")
    for layer in model.layers.values():
        layer.self_attn.k_proj = plain(layer.self_attn.k_proj)
    mlp = model.layers[1].residual_mlp
    mlp.w3 = plain(mlp.w3)
    compare(model, SHORT)


def plain(linear: torch.nn.Linear) -> torch.nn.Linear:
    outputs, inputs = linear.weight.shape
    made = torch.nn.Linear(inputs, outputs, bias=False).bfloat16()
    torch.nn.init.normal_(made.weight, std=0.1)
    return made.requires_grad_(False)


def random_adapter(ranks: int, seed: int) -> Adapter:
    """One that stands on all that it can but one matrix."""
    torch.manual_seed(seed)
    made = {
        name: Addition(torch.randn(ranks, inputs) * inputs**-0.5, torch.randn(outputs, ranks) * 0.5, 2 / ranks)
        for name, (outputs, inputs) in targets(CONFIG).items()
    }
    del made["model.layers.1.self_attn.k_proj"]
    return made


def test_adapters_are_added_to_their_rows_and_the_others_keep_their_bits() -> None:
    model, adapters = made_model(CONFIG, "fp8"), [random_adapter(3, 1), random_adapter(17, 2)]
    adapted = [[part("a", 0, 1, 2, adapter=1), part("b", 0, 7), part("c", 0, 5, adapter=0)]]
    compare(model, adapted, adapters=adapters)
    base = [[replace(each, adapter=-1) for each in adapted[0]]]
    cache = empty_cache(CONFIG, torch.float32)
    [(with_them, *_)], [(without, *_)] = (answers(CudaRank, model, cache, steps, adapters) for steps in (adapted, base))
    assert torch.equal(with_them[2], without[2])
    assert not torch.isclose(with_them, without, atol=0.1)[[0, 1, 3]].all(dim=1).any()


def test_pipeline_ranks_hand_on_what_one_computes() -> None:
    whole, model = made_model(CONFIG, "fp8"), made_model(CONFIG, "fp8")
    first, second = ArcticModel(CONFIG, range(1), lm_head=False), ArcticModel(CONFIG, range(1, 2), embed=False)
    for slice_ in (first, second):
        for index in slice_.layers:
            slice_.model.layers[str(index)] = model.model.layers[str(index)]
    first.model.embed_tokens, second.model.norm, second.lm_head = (
        model.model.embed_tokens,
        model.model.norm,
        model.lm_head,
    )
    ranks = [CudaRank(each, empty_cache(CONFIG, torch.float32)) for each in (whole, first, second)]
    for parts in ([part("a", 0, 3)], [part("a", 1, 9)]):
        alone, handed = ranks[0].run(parts, None), ranks[1].run(parts, None)
        passed = ranks[2].run(parts, handed)
        assert torch.equal(passed, alone)
        assert torch.equal(ranks[2].logits(passed, [0])[0], ranks[0].logits(alone, [0])[0])
    with pytest.raises(RuntimeError, match="no embedding"):
        ranks[2].run(parts, None)
    with pytest.raises(RuntimeError, match="no output matrix"):
        ranks[1].logits(handed, [0])


def test_rows_that_are_nobodys_choose_no_experts_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their weights would be read for nobody."""
    seen = []

    def route(logits_SE: Tensor, *others: Any, of: Callable[..., Any] = routing.route) -> Any:
        seen.append(logits_SE)
        return of(logits_SE, *others)

    monkeypatch.setattr(rank, "route", route)
    made = CudaRank(made_model(CONFIG, "fp32"), empty_cache(CONFIG, torch.float32))
    made.run([part("a", 0, 3), part("b", 0, 5), part("c", 0, 1)], None)
    for logits_SE in seen:
        assert len(logits_SE) == 4
        assert torch.equal(logits_SE[3], logits_SE[2])
        assert not torch.equal(logits_SE[2], logits_SE[1])
    assert seen


def test_what_a_step_returned_is_not_overwritten_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(_: streams.Recorder, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """As a graph does: it computes with what is there when it runs, and always into the same memory."""
        result = torch.zeros_like(compute())
        return lambda: result.copy_(compute())

    monkeypatch.setattr(streams.Recorder, "record", record)
    made = CudaRank(made_model(CONFIG, "fp32"), empty_cache(CONFIG, torch.float32))
    results = [made.run([part("a", at, at)], None) for at in range(3)]
    monkeypatch.undo()
    again = CudaRank(made_model(CONFIG, "fp32"), empty_cache(CONFIG, torch.float32))
    assert torch.equal(torch.cat(results), again.run([part("a", 0, *range(3))], None))
