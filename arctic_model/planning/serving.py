"""What serving takes: memory of each rank by part, keys and values that fit, and how fast one sequence could be.

The weights are counted tensor by tensor, from the shapes of a checkpoint (`arctic_model.names`), as they are cut:
 - over pipeline ranks by `arctic_model.parallel.plan_inference`;
 - over tensor ranks as all engines do: q, k, v, w1, w3, embedding and output matrix by rows, o and w2 by columns; norms
   and gates are on every rank. Whether a rank holds a piece of each expert or whole experts makes no difference to the
   bytes, but for the scales of w2, which every rank has of pieces: these are counted, being more;
 - in FP8 as `arctic_model.fp8` does: all matrices but gates and embedding, a scale for each output channel.
Engines repeat key-value heads where tensor is greater than their number (vLLM, TensorRT-LLM); here that is refused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from arctic_model.config import ArcticConfig
from arctic_model.cost import expected_experts_touched, layer_multiplications
from arctic_model.names import layer_shapes
from arctic_model.parallel import LayerSlice, plan_inference
from arctic_model.planning.devices import BYTES, Device, Format

SCALE_BYTES = 4
PAGE = 32
"""Tokens of a block of the cache, whole blocks a sequence: TensorRT-LLM's default (vLLM's and native's is 16)."""
PARTS = ("embedding", "attention", "residual MLP", "MLP", "experts", "router", "norms", "lm_head")
"""Parts of the weights; MLP is that of layers without experts."""


@dataclass(frozen=True)
class Serving:
    """What a manifest asks of one group."""

    config: ArcticConfig
    weights: Format = "fp8"
    kv_cache: Format = "bf16"
    kv_scaled: bool = False
    """Whether each key and value of a head has a scale of its own in FP8, as the native engine's."""
    compute: Format = "bf16"
    """Format of hidden states, and of what FP8 leaves as it is. With fp32 (the native engine), matrices become fp32 too
    where that takes less than half of the memory."""
    tensor: int = 1
    pipeline: int = 1
    max_length: int = 4096
    """Most tokens of a request."""
    visible: int | None = None
    """Most tokens that one sees, if less: window and sinks."""
    step_room: int = 0
    """Tokens for which a request that outgrows `visible` has room beside these: what a step adds before any goes."""
    token_budget: int = 2048
    """Most tokens of a step."""
    max_sequences: int = 256
    """Most requests at once."""
    memory_fraction: float = 0.9
    """Share of the memory left over that keys and values get."""
    shares_all: bool = False
    """Whether it is a share of the whole memory instead, for the weights and a step as well, as with vLLM on GPUs."""

    @property
    def sequence_tokens(self) -> int:
        """Tokens of keys and values that a request of `max_length` takes, in whole blocks."""
        kept = self.max_length if self.visible is None else min(self.max_length, self.visible + self.step_room)
        return -(-kept // PAGE) * PAGE


@dataclass(frozen=True)
class RankMemory:
    """Bytes on each of the tensor ranks of one pipeline rank."""

    layers: range
    weights: Counter[str]
    """By part, as they are kept; scales apart."""
    scales: Counter[str]
    """Of FP8 weights, by part."""
    activations: int
    """What one step needs besides."""
    runtime: int
    memory: int
    """Of the device."""
    memory_fraction: float
    shares_all: bool
    kv_bytes_per_token: int
    config: ArcticConfig

    @property
    def used(self) -> int:
        """Bytes that are gone when all is loaded and one step is provided for."""
        return self.weights.total() + self.scales.total() + self.activations + self.runtime

    @cached_property
    def resident(self) -> Counter[str]:
        """Bytes of weights with their scales, by part."""
        return self.weights + self.scales

    @cached_property
    def multiplications(self) -> int:
        """Multiply-adds that a token asks of the layers' matrices, on all tensor ranks together."""
        return sum(layer_multiplications(self.config, layer) for layer in self.layers)

    def read(self, tokens: int) -> float:
        """Bytes of weights that a step of so many tokens reads: rows of the embedding, and of experts those touched."""
        resident, config = self.resident, self.config
        whole = resident.total() - resident["embedding"] - resident["experts"]
        rows = resident["embedding"] * min(tokens / config.vocab_size, 1)
        return whole + rows + resident["experts"] * expected_experts_touched(config, tokens) / config.num_local_experts

    @property
    def kv_bytes(self) -> int:
        """Bytes that keys and values get; none where nothing is left."""
        if self.shares_all:
            return max(math.floor(self.memory * self.memory_fraction) - self.used, 0)
        return max(math.floor((self.memory - self.used) * self.memory_fraction), 0)

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values fit."""
        return self.kv_bytes // self.kv_bytes_per_token


@dataclass(frozen=True)
class ServingPlan:
    """What becomes of a `Serving` on some device."""

    serving: Serving
    device: Device
    ranks: tuple[RankMemory, ...]
    """By pipeline rank."""

    @property
    def devices(self) -> int:
        """Devices of one group."""
        return self.serving.tensor * self.serving.pipeline

    @cached_property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values fit on the rank that takes fewest: each token is on all pipeline ranks."""
        return min(rank.kv_tokens for rank in self.ranks)

    @property
    def sequences(self) -> int:
        """Requests of the greatest length that fit at once."""
        return self.kv_tokens // self.serving.sequence_tokens

    @property
    def fits(self) -> bool:
        """Whether everything is loaded and one request of the greatest length has room."""
        return self.sequences > 0

    def tokens_per_second_limit(self, context: int = 0) -> float | None:
        """The most tokens a second of one sequence alone, `context` tokens long: a bound by memory, no prediction.

        Bytes read over bandwidth (roofline, Williams et al. 2009): tensor ranks read at once, pipeline ranks one after
        the other. Arithmetic, kernel starts and all communication are left out, so nothing is faster.
        None where the device's bandwidth isn't known.
        """
        if self.device.bandwidth is None:
            return None
        serving = self.serving
        kept = context if serving.visible is None else min(context, serving.visible)
        read = sum(rank.read(1) + kept * rank.kv_bytes_per_token for rank in self.ranks)
        return self.device.bandwidth / read


def plan_serving(serving: Serving, device: Device) -> ServingPlan:
    """Lay a group out over devices. Raises ValueError with a sentence where its degrees can't be."""
    if serving.tensor > device.per_node:
        raise ValueError(
            f"tensor is {serving.tensor} and a node has {device.per_node} x {device.title}: tensor ranks share a pod, "
            f"so write at most {device.per_node}, and more pipeline ranks"
        )
    shared = plan_inference(serving.config, tensor=serving.tensor, pipeline=serving.pipeline)
    pieces = _pieces_of_slices(serving.config, serving.tensor, shared.slices)
    ranks = (_plan_rank(serving, device, *both) for both in zip(shared.slices, pieces, strict=True))
    return ServingPlan(serving, device, tuple(ranks))


def _plan_rank(serving: Serving, device: Device, part: LayerSlice, pieces: list[_Piece]) -> RankMemory:
    weights, scales = _weights(serving, pieces)
    config = serving.config
    heads = config.num_key_value_heads // serving.tensor
    return RankMemory(
        layers=part.layers,
        weights=weights,
        scales=scales,
        activations=activation_bytes(serving, part),
        runtime=device.runtime,
        memory=device.memory,
        memory_fraction=serving.memory_fraction,
        shares_all=serving.shares_all,
        kv_bytes_per_token=2
        * len(part.layers)
        * heads
        * vector_bytes(config, serving.kv_cache, scaled=serving.kv_scaled),
        config=config,
    )


def vector_bytes(config: ArcticConfig, kv_cache: Format, *, scaled: bool) -> int:
    """Bytes of one head's key or value; with `scaled`, it has a scale of its own in FP8."""
    return config.head_dim * BYTES[kv_cache] + (SCALE_BYTES if scaled and kv_cache == "fp8" else 0)


@dataclass(frozen=True)
class _Piece:
    """What a tensor rank has of a tensor, or of several alike."""

    part: str
    shape: tuple[int, ...]
    times: int

    @property
    def elements(self) -> int:
        return self.times * prod(self.shape)


def _pieces_of_slices(config: ArcticConfig, tensor: int, slices: Sequence[LayerSlice]) -> list[list[_Piece]]:
    kinds = {config.has_experts(layer): layer for layer in range(config.num_hidden_layers)}
    of_kind = {kind: _pieces(layer_shapes(config, layer), config, tensor) for kind, layer in kinds.items()}
    ends = (config.vocab_size, config.hidden_size)
    embedding = _pieces({"model.embed_tokens.weight": ends}, config, tensor)
    head = _pieces({"model.norm.weight": ends[1:], "lm_head.weight": ends}, config, tensor)

    def pieces_of(part: LayerSlice) -> list[_Piece]:
        layers = Counter(config.has_experts(layer) for layer in part.layers)
        return [
            *(embedding if part.embed else ()),
            *(replace(piece, times=piece.times * count) for kind, count in layers.items() for piece in of_kind[kind]),
            *(head if part.lm_head else ()),
        ]

    return [pieces_of(part) for part in slices]


def _pieces(shapes: dict[str, tuple[int, ...]], config: ArcticConfig, tensor: int) -> list[_Piece]:
    """One a tensor; the first expert stands for all of its layer."""
    pieces = []
    for name, shape in shapes.items():
        part = _part(name)
        if part != "experts":
            pieces.append(_Piece(part, _cut(name, part, shape, tensor), 1))
        elif ".experts.0." in name:
            pieces.append(_Piece(part, _cut(name, part, shape, tensor), config.num_local_experts))
    return pieces


def _part(name: str) -> str:
    marks = {
        "norm": "norms",
        "embed_tokens": "embedding",
        "self_attn": "attention",
        "residual_mlp": "residual MLP",
        ".experts.": "experts",
        ".gate.": "router",
        ".mlp.": "MLP",
        "lm_head": "lm_head",
    }
    return next(part for mark, part in marks.items() if mark in name)


def _cut(name: str, part: str, shape: tuple[int, ...], tensor: int) -> tuple[int, ...]:
    """The shape of one tensor rank's piece; rows of the vocabulary are padded to pieces alike."""
    if part in ("norms", "router"):
        return shape
    if name.endswith(("o_proj.weight", "w2.weight")):
        return (shape[0], shape[1] // tensor)
    return (-(-shape[0] // tensor), shape[1])


def _weights(serving: Serving, pieces: Sequence[_Piece]) -> tuple[Counter[str], Counter[str]]:
    """Bytes of weights and of scales on one tensor rank, by part."""
    weights: Counter[str] = Counter()
    scales: Counter[str] = Counter()
    for piece in pieces:
        quantized = serving.weights == "fp8" and piece.part not in ("norms", "router", "embedding")
        kept = serving.compute if serving.weights == "fp8" and not quantized else serving.weights
        weights[piece.part] += piece.elements * BYTES[kept]
        if quantized:
            scales[piece.part] += piece.times * piece.shape[0] * SCALE_BYTES
    return weights, scales


def activation_bytes(serving: Serving, part: LayerSlice) -> int:
    """Bytes of all that a layer computes for one step, as if nothing were freed or fused, and of the logits.

    Hidden states: the layer's input, its three norms, attention's output, their sum, both MLPs' outputs.
    """
    config, tensor = serving.config, serving.tensor
    hidden, inner = config.hidden_size, config.intermediate_size
    token = 8 * hidden + 2 * (hidden + config.num_key_value_heads * config.head_dim) // tensor
    token += 3 * max(hidden, inner) // tensor
    if config.expert_layers:
        token += config.num_experts_per_tok * (2 * hidden + 3 * inner // tensor) + 2 * config.num_local_experts
    rows = min(serving.max_sequences, serving.token_budget) if part.lm_head else 0
    # One position of each request becomes logits; they are gathered, and sampled from a copy, in fp32.
    return serving.token_budget * token * BYTES[serving.compute] + 2 * rows * config.vocab_size * BYTES["fp32"]
