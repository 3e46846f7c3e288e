"""What a model costs: parameters, FLOPs and bytes. Pure arithmetic over the configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

from arctic_model.config import ArcticConfig
from arctic_model.names import tensor_shapes

_PIECE = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Logits that the loss makes at once: on CPUs few enough to stay in the last cache, on GPUs so many that the output
matrix's gradient is read and written a few times only."""
_FEWEST = 128
"""Tokens of such a piece, at least: for each the gradient of the whole output matrix is read and written."""
_EXPERT = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters, the embedding and the output matrix included."""

    dense: int
    """All that every token passes through, routers apart."""
    routers: int
    experts: int
    """All experts of all layers."""
    active: int
    """What one token passes through: dense, routers, and its own experts."""

    @property
    def total(self) -> int:
        """All parameters."""
        return self.dense + self.routers + self.experts


def count_parameters(config: ArcticConfig) -> ParameterCount:
    """Count from the shapes of the checkpoint's tensors."""
    dense = routers = experts = 0
    for name, shape in tensor_shapes(config).items():
        if _EXPERT.search(name):
            experts += prod(shape)
        elif ".gate." in name:
            routers += prod(shape)
        else:
            dense += prod(shape)
    own = experts // config.num_local_experts * config.num_experts_per_tok
    return ParameterCount(dense=dense, routers=routers, experts=experts, active=dense + routers + own)


def weight_bytes(config: ArcticConfig, *, bytes_per_parameter: int = 2) -> int:
    """Bytes of all weights: 2 a parameter in bf16, 1 in FP8 (scales apart)."""
    return count_parameters(config).total * bytes_per_parameter


def kv_bytes_per_token(config: ArcticConfig, *, bytes_per_element: int = 2) -> int:
    """Bytes of cache that one token takes: a key and a value, in every layer and key-value head."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * bytes_per_element


def layer_multiplications(config: ArcticConfig, layer: int) -> int:
    """Multiply-adds that a token asks of one layer's matrices: of experts, those that it has."""
    hidden, inner = config.hidden_size, config.intermediate_size
    attention = 2 * hidden * (hidden + config.num_key_value_heads * config.head_dim)
    if not config.has_experts(layer):
        return attention + 3 * hidden * inner
    experts = hidden * config.num_local_experts + 3 * config.num_experts_per_tok * hidden * inner
    return attention + 3 * hidden**2 + experts


def training_flops_per_token(config: ArcticConfig, sequence_length: int, *, frozen: bool = False) -> int:
    """FLOPs that the model asks for a token of training, the numerator of MFU; recomputation is not counted.

    `6 N + 12 L D T` (Chowdhery et al. 2022, PaLM, appendix B): N active parameters in matrices that multiply, so
    without the embedding, which is looked up; attention is counted as if it were not causal, as there. Weights below an
    adapter are `frozen`: they have no gradients.
    """
    multiplying = count_parameters(config).active - config.vocab_size * config.hidden_size
    flops = 6 * multiplying + 12 * config.num_hidden_layers * config.hidden_size * sequence_length
    return flops - 2 * _left_out_where_frozen(config) if frozen else flops


def masked_flops_per_token(config: ArcticConfig, sequence_length: int) -> int:
    """What of `training_flops_per_token` nobody has to compute: half of attention's pairs.

    No token sees those after it. Sequences of several documents, which do not see each other, leave out more.
    """
    return 6 * config.num_hidden_layers * config.hidden_size * sequence_length


def _left_out_where_frozen(config: ArcticConfig) -> int:
    """Multiply-adds of a token that no adapter asks for: the gradients of all matrices, and what lies below the first.

    The lowest adapter is on the first layer's queries, keys and values: nothing is asked of what went into these, nor
    of what went into the experts beside them, which have none.
    """
    hidden, layers = config.hidden_size, range(config.num_hidden_layers)
    matrices = config.vocab_size * hidden + sum(layer_multiplications(config, layer) for layer in layers)
    after = hidden**2 + 3 * hidden * (hidden if config.has_experts(0) else config.intermediate_size)
    return matrices + layer_multiplications(config, 0) - after


def recomputed_flops_per_token(config: ArcticConfig, sequence_length: int) -> int:
    """FLOPs of a token that activation checkpointing does again: a forward pass of all layers but for their routers.

    The last product of each part is left out, as nothing of the backward pass asks for its result.
    """
    hidden, inner, chosen = config.hidden_size, config.intermediate_size, config.num_experts_per_tok
    multiplications = 0
    for layer in range(config.num_hidden_layers):
        # Of attention's pairs half: no token sees those after it.
        attention = hidden * (hidden + 2 * config.num_key_value_heads * config.head_dim) + hidden * sequence_length
        experts = config.has_experts(layer)
        multiplications += attention + (2 * hidden**2 + 2 * chosen * hidden * inner if experts else 2 * hidden * inner)
    return 2 * multiplications


def fp8_flops_per_token(config: ArcticConfig, *, recomputed: bool) -> int:
    """FLOPs of a token that `precision: fp8` trains in FP8, with what activation checkpointing does again of them.

    Those of all matrices of layers but for their routers.
    """
    matrices = sum(layer_multiplications(config, layer) for layer in range(config.num_hidden_layers))
    routers = config.expert_layers * config.hidden_size * config.num_local_experts
    again = recomputed_flops_per_token(config, sequence_length=0) if recomputed else 0  # without attention's pairs
    return 6 * (matrices - routers) + again


def tokens_of_a_piece(tokens: int, vocabulary: int, device: str) -> int:
    """Tokens whose logits the loss holds at once, of `tokens` in all, on a device of type `cpu` or `cuda`."""
    return min(tokens, max(_FEWEST, _PIECE[device] // vocabulary))


def model_flops_utilization(
    config: ArcticConfig, *, sequence_length: int, tokens_per_second: float, peak_flops: float, frozen: bool = False
) -> float:
    """MFU: FLOPs that the model asked for over those that all devices together could do (`peak_flops` a second)."""
    return tokens_per_second * training_flops_per_token(config, sequence_length, frozen=frozen) / peak_flops


def expected_experts_touched(config: ArcticConfig, tokens: int) -> float:
    """Experts of one layer that a step of `tokens` reads, if tokens chose evenly and independently.

    `E (1 - (1 - K/E)^tokens)`: each expert is missed by a token with probability `1 - K/E`.
    """
    experts = config.num_local_experts
    return experts * (1 - (1 - config.num_experts_per_tok / experts) ** tokens)


def step_bytes(
    config: ArcticConfig,
    *,
    tokens: int,
    context_tokens: int,
    bytes_per_parameter: float,
    kv_bytes_per_element: int = 2,
    experts_touched: float | None = None,
) -> float:
    """Bytes that a decoding step must read; over the bandwidth, its least time (roofline, Williams et al. 2009).

    All dense weights and routers once, the experts touched once a layer, and the cache of all sequences
    (`context_tokens` in sum). `experts_touched` is the mean a layer, as measured; by default what even routing gives.
    The embedding is not read whole: one row a token.
    """
    count = count_parameters(config)
    touched = expected_experts_touched(config, tokens) if experts_touched is None else experts_touched
    unread_rows = (config.vocab_size - tokens) * config.hidden_size
    weights = count.dense - unread_rows + count.routers + count.experts * touched / config.num_local_experts
    cache = context_tokens * kv_bytes_per_token(config, bytes_per_element=kv_bytes_per_element)
    return weights * bytes_per_parameter + cache
