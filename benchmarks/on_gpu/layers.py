"""Layers of a model with random FP8 weights on a device, in the engine's rank there, and steps of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from unittest import mock

import torch
from torch import Tensor

from arctic_model import fp8
from arctic_model.config import ArcticConfig
from arctic_model.model import ArcticModel
from arctic_model.weights import materialize
from arctic_workers.inference.engines.native.cache import PagedCache
from arctic_workers.inference.engines.native.cuda import rank as rank_module
from arctic_workers.inference.engines.native.cuda.rank import CudaRank
from arctic_workers.inference.engines.native.cuda.routing import Routes, route
from arctic_workers.inference.engines.native.step import Part

BLOCK = 16
"""Tokens of a block of the cache: the engine's default."""
_LOW_EXPONENTS = ~0x4040404040404040
"""Of eight e4m3 numbers these bits are kept: all magnitudes below 2, and no NaN."""
_RMS = 0.65
"""About that of such numbers."""


@dataclass(frozen=True)
class Loaded:
    """A rank with layers alone: it takes hidden states and returns them."""

    config: ArcticConfig
    model: ArcticModel
    rank: CudaRank
    device: torch.device

    def run(self, parts: list[Part], x_TD: Tensor) -> Tensor:
        """Return the hidden states after all layers, [T, D]."""
        return self.rank.run(parts, x_TD)


def loaded(config: ArcticConfig, device: torch.device, sequences: int, length: int, *, rounds: bool = False) -> Loaded:
    """Make a model's layers, and a cache in which so many sequences have room for so many tokens each.

    `rounds` is as in `CudaRank`.
    """
    model = shape(config)
    fill_weights(model, device)
    cache = PagedCache(
        range(config.num_hidden_layers),
        blocks=1 + sequences * blocks_of(length),
        block_size=BLOCK,
        heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        dtype=torch.bfloat16,
        device=device,
    )
    for layer in range(config.num_hidden_layers):
        for tensor in cache.tensors(layer).values():
            tensor.normal_()
    return Loaded(config, model, CudaRank(model, cache, rounds=rounds), device)


def shape(config: ArcticConfig) -> ArcticModel:
    """Return the layers of a model in FP8, on the meta device."""
    with torch.device("meta"):
        model = ArcticModel(config, embed=False, lm_head=False)
        fp8.quantize_model(model)
    return model.requires_grad_(False)


def blocks_of(length: int) -> int:
    """Return the blocks of a sequence of so many tokens."""
    return -(-length // BLOCK)


def fill_weights(model: ArcticModel, device: torch.device) -> None:
    """Give shaped layers random weights, made where they are to be."""
    for name in list(model.state_dict()):
        tensor = materialize(model, name, device)
        if tensor.dtype == fp8.DTYPE:
            tensor.view(torch.int64).random_().bitwise_and_(_LOW_EXPONENTS)
        elif name.endswith("_scale"):
            tensor.fill_(1 / (_RMS * model.config.hidden_size**0.5))
        elif tensor.dim() == 1:
            tensor.fill_(1.0)
        else:
            tensor.normal_(std=model.config.initializer_range)


def singles(sequences: int, length: int) -> list[Part]:
    """Return a step of sequences that have a token each, the last of so many, their blocks anywhere in the cache."""
    each = blocks_of(length)
    blocks = list(range(1, 1 + sequences * each))
    Random(0).shuffle(blocks)
    return [Part(length - 1, (0,), tuple(blocks[at : at + each]), None) for at in range(0, len(blocks), each)]


def prompts(sequences: int, length: int) -> list[Part]:
    """Return a step that reads whole prompts."""
    each = blocks_of(length)
    firsts = range(1, 1 + sequences * each, each)
    return [Part(0, (0,) * length, tuple(range(first, first + each)), None) for first in firsts]


def states(parts: list[Part], config: ArcticConfig, device: torch.device) -> Tensor:
    """Return random hidden states for a step, [T, D]."""
    return torch.randn(sum(len(part.tokens) for part in parts), config.hidden_size, device=device)


@contextmanager
def choices() -> Iterator[list[Tensor]]:
    """Take down which experts get which rows meanwhile: a table of tiles a layer, in the order of layers."""
    taken: list[Tensor] = []

    def noted(logits_SE: Tensor, chosen: int, size: int) -> Routes:
        routes = route(logits_SE, chosen, size)
        if not (logits_SE.is_cuda and torch.cuda.is_current_stream_capturing()):
            taken.append(routes.tiles.table_M3)
        return routes

    with mock.patch.object(rank_module, "route", noted):
        yield taken


def rows_by_expert(table_M3: Tensor, experts: int) -> Tensor:
    """Return how many rows each expert has: int64 [E]."""
    expert_M, _, rows_M = table_M3.long().unbind(1)
    return rows_M.new_zeros(experts).index_add_(0, expert_M.where(rows_M > 0, 0), rows_M)
