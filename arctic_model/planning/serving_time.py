"""How long a step of the native engine takes on one machine, predicted from measured costs.

`arctic_model.planning.decoding` bounds a step from below; this predicts it. Each matrix is read once for all rows that
it multiplies, and its numbers are decoded once: reading goes on beside decoding and multiplying, and the slower of both
counts (a roofline a matrix, Williams et al. 2009). Of experts, rows fall on each as an even choice has it. All else
adds up: attention, what is done for each row, starts of layers, what Python does for a step and for each request.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import lru_cache

from arctic_model.config import ArcticConfig
from arctic_model.cost import kv_bytes_per_token

_EXACT = 64
"""Rows up to which experts' shares are summed up exactly: beyond, all experts have so many that the mean does."""


@dataclass(frozen=True)
class ServingCosts:
    """Seconds, of an engine on a machine, all of its threads at work."""

    read: float
    """To read a byte of weights."""
    decode: float
    """To decode a weight, once a product."""
    multiply: float
    """To multiply a weight with one row's element and add it."""
    attend_read: float
    """To read a byte of keys and values."""
    attend: float
    """A pair of tokens, an element of the hidden states, a layer: a score, and what it weighs."""
    elements: float
    """A row's element of the hidden states, a layer: norms, rotations, sums."""
    layers: float
    """A layer: threads wait for each other."""
    logits: float
    """A logit of a token that is drawn."""
    requests: float
    """A request of a step: scheduling, drawing, handing out."""
    steps: float
    """A step."""

    @property
    def values(self) -> tuple[float, ...]:
        """In the order of the fields."""
        return astuple(self)


# What a core or two of a server's processor take; where a calibration begins.
TYPICAL = ServingCosts(
    read=1 / 18e9,
    decode=1 / 50e9,
    multiply=1 / 45e9,
    attend_read=1 / 15e9,
    attend=1 / 20e9,
    elements=1e-9,
    layers=2e-5,
    logits=0.2e-9,
    requests=1e-5,
    steps=1e-4,
)


@dataclass(frozen=True)
class EngineStep:
    """What one step computes."""

    rows: int
    """Tokens that go through the layers."""
    requests: int
    """Whose tokens those are."""
    draws: int
    """Tokens that are drawn."""
    seen: int
    """Pairs of a row and a token that it sees."""
    cached: int
    """Tokens whose keys and values are read, once a request."""


def decoding_step(batch: int, context: int) -> EngineStep:
    """One more token for each of `batch` requests with `context` tokens each."""
    return EngineStep(batch, batch, batch, batch * context, batch * context)


def seconds(config: ArcticConfig, step: EngineStep, costs: ServingCosts) -> float:
    """Predict a step of a model with weights in FP8 and keys and values in bf16."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    products = sum(
        weights * _product(rows, costs) if of_experts == 1 else weights * _shared_product(rows, of_experts, costs)
        for weights, rows, of_experts in _products(config, step)
    )
    return (
        products
        + step.cached * kv_bytes_per_token(config) * costs.attend_read
        + step.seen * hidden * layers * costs.attend
        + step.rows * hidden * layers * costs.elements
        + layers * costs.layers
        + step.draws * config.vocab_size * costs.logits
        + step.requests * costs.requests
        + costs.steps
    )


def _products(config: ArcticConfig, step: EngineStep) -> Iterator[tuple[int, int, float]]:
    """Yield weights, the rows they multiply, and of experts the share of rows that one has: 1 is all."""
    hidden, inner = config.hidden_size, config.intermediate_size
    plain = config.num_hidden_layers - config.expert_layers
    attention = 2 * hidden * (hidden + config.num_key_value_heads * config.head_dim)
    yield config.num_hidden_layers * attention, step.rows, 1
    yield plain * 3 * hidden * inner, step.rows, 1
    if experts := config.expert_layers * config.num_local_experts:
        yield config.expert_layers * 3 * hidden**2, step.rows, 1
        yield experts * 3 * hidden * inner, step.rows, config.num_experts_per_tok / config.num_local_experts
    yield config.vocab_size * hidden, step.draws, 1


def _product(rows: float, costs: ServingCosts) -> float:
    """Seconds a weight."""
    return max(costs.read, costs.decode + rows * costs.multiply) if rows else 0.0


def _shared_product(rows: int, share: float, costs: ServingCosts) -> float:
    """Seconds a weight of an expert that each row takes with the chance `share`: none where no row does."""
    if rows > _EXACT:
        return (1 - (1 - share) ** rows) * _product(rows * share / (1 - (1 - share) ** rows), costs)
    return sum(chance * _product(count, costs) for count, chance in enumerate(_chances(rows, share)))


@lru_cache(maxsize=4096)
def _chances(rows: int, share: float) -> tuple[float, ...]:
    """Binomial: the chance that so many of the rows fall on an expert."""
    return tuple(math.comb(rows, count) * share**count * (1 - share) ** (rows - count) for count in range(rows + 1))
