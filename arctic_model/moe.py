"""Experts: routing, the stacked experts, and the layer that joins them in three steps.

The three steps exist because Arctic's experts read the layer's input from before attention: whoever moves tokens
between machines starts moving them before attention and fetches the results after the residual MLP. Shapes are named
by the legend of `arctic_model.layers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from arctic_model.config import ArcticConfig
from arctic_model.devices import Wait, counts_on_host
from arctic_model.recompute import recomputed


class ExpertLayer(Protocol):
    """What a decoder layer asks of its experts. What `dispatch` and `compute` return is the implementation's own."""

    def dispatch(self, x_BTD: Tensor) -> Any:
        """Choose the experts of every token and start sending tokens to them."""
        ...

    def compute(self, dispatched: Any) -> Any:
        """Run the experts on what arrived and start sending results back."""
        ...

    def combine(self, computed: Any) -> tuple[Tensor, Tensor]:
        """Return the weighted sums [B, T, D] and the layer's load-balancing loss (a scalar, no coefficient yet)."""
        ...


class Text(NamedTuple):
    """Which tokens are of a text, where others are padding: these are alike, and so go to the same experts."""

    mask_S: Tensor
    """Bool."""
    tokens: float
    """How many they are; of ranks that share sequences an even part of those of all."""


class Routing(NamedTuple):
    """Which experts a token has, with which weights; `probabilities` (fp32) are those before the choice."""

    weights_SK: Tensor
    experts_SK: Tensor
    probabilities_SE: Tensor
    kept_SK: Tensor | None = None
    """Which choices are not dropped, bool; None where none is. The weights of the others are 0."""
    text: Text | None = None
    """None where all tokens are of a text."""


class Router(nn.Module):
    """Top-k choice by softmax in fp32, weights renormalised over the chosen and cast back to the model's dtype.

    Dropless, unless it is given a `capacity`: how many choices an expert takes of so many tokens. Then what is beyond
    it is dropped in training, and a token's weights are renormalised over what is kept.
    """

    def __init__(self, hidden: int, experts: int, chosen: int, capacity: Callable[[int], int] | None = None) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, experts, bias=False)
        self.chosen = chosen
        self.capacity = capacity
        self.text: Text | None = None
        """Which of the tokens that come next are of a text; None where all are."""

    def forward(self, x_SD: Tensor) -> Routing:
        """Route each token by itself; without a capacity what other tokens are in the batch changes nothing."""
        probabilities_SE = functional.softmax(self.gate(x_SD).float(), dim=-1)
        weights_SK, experts_SK = probabilities_SE.topk(self.chosen, dim=-1)
        kept_SK = None
        if self.capacity is not None and self.training:
            capacity = self.capacity(x_SD.shape[0])
            kept_SK = within_capacity(experts_SK, probabilities_SE.shape[-1], capacity, self.text)
            weights_SK = weights_SK * kept_SK
            weights_SK = weights_SK / weights_SK.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).eps)
        else:
            weights_SK = weights_SK / weights_SK.sum(-1, keepdim=True)
        return Routing(weights_SK.to(x_SD.dtype), experts_SK, probabilities_SE, kept_SK, self.text)


def within_capacity(experts_SK: Tensor, experts: int, capacity: int, text: Text | None = None) -> Tensor:
    """Return which choices are among the first `capacity` of their expert: bool [S, K].

    First come the first choices of all tokens, in their order, then the second ones, and so on (GShard, Lepikhin et al.
    2020, arXiv 2006.16668, algorithm 1). Padding has no place.
    """
    if text is not None:  # as of one more expert, whose places are nobody's
        mask_S1 = text.mask_S[:, None]
        return within_capacity(experts_SK.where(mask_S1, experts), experts + 1, capacity) & mask_S1
    choices_R = experts_SK.t().flatten()
    order_R = choices_R.argsort(stable=True)
    counts_E = count_choices(choices_R, experts)
    begins_E = counts_E.cumsum(0) - counts_E
    places_R = torch.empty_like(choices_R)
    places_R[order_R] = torch.arange(choices_R.shape[0], device=choices_R.device) - begins_E[choices_R[order_R]]
    return (places_R < capacity).view(experts_SK.t().shape).t()


def count_choices(choices_R: Tensor, experts: int) -> Tensor:
    """Return how many choices fell on each expert: int64 [E].

    Not `bincount`, for which a host has to wait for its GPU.
    """
    return choices_R.new_zeros(experts).scatter_add_(0, choices_R, torch.ones_like(choices_R))


def count_of_text(experts_SK: Tensor, experts: int, text: Text | None) -> Tensor:
    """Return how many choices of tokens of a text fell on each expert: int64 [E]."""
    if text is None:
        return count_choices(experts_SK.flatten(), experts)
    choices_R = experts_SK.where(text.mask_S[:, None], experts).flatten()
    return count_choices(choices_R, experts + 1)[:experts]


def choice_shares(experts_SK: Tensor, experts: int, text: Text | None = None) -> Tensor:
    """Return for each expert the share of tokens of which it is a choice: they sum to K, fp32 [E]."""
    return count_of_text(experts_SK, experts, text) / (experts_SK.shape[0] if text is None else text.tokens)


def load_balancing_loss(probabilities_SE: Tensor, shares_E: Tensor, text: Text | None = None) -> Tensor:
    """`E * sum over k, e of f[k,e] * P[e]`: f is the share of tokens whose k-th choice is e, P the mean probability.

    The least value, with all experts alike, is K. Shazeer et al. 2017 and Fedus et al. 2021 (equation 4), summed over
    the choices as the published Arctic does. Padding is left out.
    """
    if text is not None:
        probabilities_SE = probabilities_SE * (text.mask_S[:, None] * (text.mask_S.shape[0] / text.tokens))
    return shares_E.shape[0] * (shares_E * probabilities_SE.mean(0)).sum()


class Experts(nn.Module):
    """Gated MLPs with stacked weights: w1 and w3 are [E, F, D], w2 is [E, D, F]."""

    def __init__(self, experts: int, hidden: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(experts, inner, hidden))
        self.w2 = nn.Parameter(torch.empty(experts, hidden, inner))
        self.w3 = nn.Parameter(torch.empty(experts, inner, hidden))
        self.recomputes = False

    def forward(self, x_RD: Tensor, counts_E: Tensor) -> Tensor:
        """Run rows sorted by expert, `counts_E` rows each; returns [R, D] in the same order."""
        return recomputed(self._run, x_RD, counts_E) if self.recomputes else self._run(x_RD, counts_E)

    def _run(self, x_RD: Tensor, counts_E: Tensor) -> Tensor:
        # One unbind has one backward; indexing expert by expert would add up a whole stack of zeros for each.
        w1, w2, w3 = self.w1.unbind(), self.w2.unbind(), self.w3.unbind()

        def run(expert: int, x_rD: Tensor) -> Tensor:
            gated = functional.silu(functional.linear(x_rD, w1[expert])) * functional.linear(x_rD, w3[expert])
            return functional.linear(gated, w2[expert])

        return expert_by_expert(x_RD, counts_E, run)


def split_by_expert(x_RD: Tensor, counts_E: Tensor) -> tuple[Tensor, ...]:
    """Return each expert's rows of those that are sorted by expert."""
    return torch.split(x_RD, counts_on_host(counts_E, Wait.EXPERT_ROWS))


def expert_by_expert(x_RD: Tensor, counts_E: Tensor, run: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Give each expert its rows (sorted by expert, `counts_E` each), skipping those without; returns [R, D]."""
    parts = [run(expert, x_rD) for expert, x_rD in enumerate(split_by_expert(x_RD, counts_E)) if x_rD.shape[0]]
    return torch.cat(parts) if parts else x_RD


class _Dispatched(NamedTuple):
    x_RD: Tensor
    counts_E: Tensor
    order_R: Tensor
    routing: Routing
    shape: torch.Size


class _Computed(NamedTuple):
    y_RD: Tensor
    dispatched: _Dispatched


class MoE(nn.Module):
    """All experts on one device, dropless: an `ExpertLayer`."""

    def __init__(self, config: ArcticConfig) -> None:
        super().__init__()
        hidden, experts = config.hidden_size, config.num_local_experts
        self.router = Router(hidden, experts, config.num_experts_per_tok)
        self.experts = Experts(experts, hidden, config.intermediate_size)

    def dispatch(self, x_BTD: Tensor) -> _Dispatched:
        """Route every token and sort copies of them by expert."""
        x_SD = x_BTD.flatten(0, -2)
        routing: Routing = self.router(x_SD)
        experts, chosen = routing.probabilities_SE.shape[-1], routing.experts_SK.shape[-1]
        choices_R = routing.experts_SK.flatten()
        order_R = choices_R.argsort(stable=True)
        counts_E = count_choices(choices_R, experts)
        return _Dispatched(x_SD[order_R // chosen], counts_E, order_R, routing, x_BTD.shape)

    def compute(self, dispatched: _Dispatched) -> _Computed:
        """Run the experts."""
        return _Computed(self.experts(dispatched.x_RD, dispatched.counts_E), dispatched)

    def combine(self, computed: _Computed) -> tuple[Tensor, Tensor]:
        """Sum each token's choices in the order of choice, so that the sum does not depend on other tokens."""
        dispatched, routing = computed.dispatched, computed.dispatched.routing
        y_SKD = computed.y_RD[dispatched.order_R.argsort()].view(*routing.experts_SK.shape, dispatched.shape[-1])
        y_SD = (y_SKD * routing.weights_SK[..., None]).sum(1)
        shares_E = choice_shares(routing.experts_SK, routing.probabilities_SE.shape[-1], routing.text)
        return y_SD.view(dispatched.shape), load_balancing_loss(routing.probabilities_SE, shares_E, routing.text)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """All three steps at once."""
        return self.combine(self.compute(self.dispatch(x_BTD)))
