"""The native engine's rank on a GPU against the one on the CPU, against itself in other company, and its graphs."""

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from models import random_model
from torch import Tensor

from arctic_model import fp8
from arctic_model.config import ArcticConfig
from arctic_model.model import ArcticModel
from arctic_workers.inference.engines.native.cache import PagedCache
from arctic_workers.inference.engines.native.runner import Compute, TorchRank, compute_of
from arctic_workers.inference.engines.native.step import Part
from arctic_workers.inference.engines.native.window import Window

CPU = torch.device("cpu")
CONFIG = ArcticConfig.preset("arctic-tiny").replace(
    vocab_size=300,
    hidden_size=256,
    intermediate_size=192,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=2,
    num_local_experts=8,
    moe_layer_frequency=1,
)
BLOCK, BLOCKS = 16, 24
"""Tokens of a block, and blocks of each sequence."""
SEQUENCES = 40
ANSWER = 16
WEIGHTS = {"fp8": fp8.DTYPE, "bf16": torch.bfloat16, "fp32": torch.float32}


def rank_on(device: torch.device, weights: str, kept: torch.dtype, window: Window | None = None) -> Compute:
    model = model_in(weights)
    cache = PagedCache(
        range(CONFIG.num_hidden_layers),
        blocks=1 + SEQUENCES * BLOCKS,
        block_size=BLOCK,
        heads=CONFIG.num_key_value_heads,
        head_dim=CONFIG.head_dim,
        dtype=kept,
        window=window,
        device=device,
    )
    return TorchRank(model, cache) if device == CPU else compute_of(deepcopy(model).to(device), cache)


def model_in(weights: str) -> ArcticModel:
    model = random_model(CONFIG)
    if weights == "fp8":
        fp8.quantize_model(model)
        return model
    return model.to(WEIGHTS[weights])


def blocks_of(sequence: int) -> tuple[int, ...]:
    first = 1 + sequence * BLOCKS
    return tuple(range(first, first + BLOCKS))


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(CONFIG.vocab_size, (length,), generator=generator).tolist() for length in lengths]


def whole(asked: Sequence[Sequence[int]]) -> list[Part]:
    return [Part(0, tuple(prompt), blocks_of(place), None) for place, prompt in enumerate(asked)]


def followed_by(part: Part, token: int) -> Part:
    return Part(part.end, (token,), part.blocks, None)


def logits_of(compute: Compute, parts: Sequence[Part]) -> Tensor:
    """The logits after each part's last token, on the CPU."""
    x_TD = compute.run(parts, None)
    ends, end = [], 0
    for part in parts:
        end += len(part.tokens)
        ends.append(end - 1)
    return compute.logits(x_TD, ends)[0].cpu()


def answer(compute: Compute, asked: Sequence[Sequence[int]], forced: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The tokens [S, T] that follow prompts, likeliest or `forced`, and the logits [T, S, V] that they came from."""
    parts, tokens, logits = whole(asked), [], []
    for place in range(ANSWER):
        logits.append(logits_of(compute, parts))
        tokens.append(logits[-1].argmax(-1) if forced is None else forced[:, place])
        parts = [followed_by(part, int(token)) for part, token in zip(parts, tokens[-1], strict=True)]
    return torch.stack(tokens, 1), torch.stack(logits)


@pytest.mark.parametrize(
    ("weights", "kept", "window"),
    [
        ("fp8", torch.bfloat16, None),
        ("fp8", fp8.DTYPE, None),
        ("bf16", torch.bfloat16, None),
        ("fp32", torch.float32, None),
        ("fp8", torch.bfloat16, Window(48, 4)),
    ],
)
def test_the_cpus_tokens_are_among_the_likeliest(
    gpu: torch.device, weights: str, kept: torch.dtype, window: Window | None
) -> None:
    asked = prompts(1, 7, 64, 65, 200)
    tokens_ST, expected_TSV = answer(rank_on(CPU, weights, kept, window), asked)
    _, logits_TSV = answer(rank_on(gpu, weights, kept, window), asked, tokens_ST)
    top_TS = logits_TSV.amax(-1)
    forced_TS = logits_TSV.gather(2, tokens_ST.t()[..., None])[..., 0]
    assert ((top_TS - forced_TS) <= 1e-3 * top_TS.abs()).all()
    assert (logits_TSV - expected_TSV).abs().max() <= 5e-3 * expected_TSV.abs().max()


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("company", [1, 15, 39])
def test_a_sequence_has_the_same_bits_in_any_company(gpu: torch.device, weights: str, company: int) -> None:
    compute = rank_on(gpu, weights, torch.bfloat16)
    asked = prompts(100, *[30 + place for place in range(company)])
    alone = logits_of(compute, whole(asked[:1]))
    assert torch.equal(logits_of(compute, whole(asked))[:1], alone)
    nexts = [followed_by(part, 5) for part in whole(asked)]
    assert torch.equal(logits_of(compute, nexts)[:1], logits_of(compute, nexts[:1]))


def test_a_prompt_has_the_same_bits_however_it_is_cut(gpu: torch.device) -> None:
    compute = rank_on(gpu, "fp8", torch.bfloat16)
    [prompt] = prompts(150)
    at_once = logits_of(compute, whole([prompt]))
    for cuts in ((0, 1, 150), (0, 64, 130, 149, 150)):
        for start, end in pairwise(cuts):
            last = logits_of(compute, [Part(start, tuple(prompt[start:end]), blocks_of(0), None)])
        assert torch.equal(last, at_once)


@pytest.mark.parametrize("sequences", [1, 3, 39])
def test_a_recorded_step_computes_what_it_does_when_it_is_started_anew(gpu: torch.device, sequences: int) -> None:
    asked = prompts(*[20 + place for place in range(sequences)])
    recorded, anew = (rank_on(gpu, "fp8", torch.bfloat16) for _ in range(2))
    for compute in (recorded, anew):
        compute.run(whole(asked), None)
    first = [followed_by(part, 7) for part in whole(asked)]
    second = [followed_by(part, 8) for part in first]
    started = recorded.run(first, None)  # which records as well
    assert torch.equal(recorded.run(first, None), started)
    replayed = recorded.run(second, None)
    anew.run(first, None)
    # With two tokens of another sequence, a step is none of those that are recorded.
    other = Part(0, (1, 2), blocks_of(SEQUENCES - 1), None)
    assert torch.equal(anew.run([*second, other], None)[:sequences], replayed)
