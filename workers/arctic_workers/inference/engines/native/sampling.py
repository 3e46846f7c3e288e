"""Choosing tokens from logits: each row by itself, a function of the row, the request's seed and the position."""

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from arctic_workers.inference.engines.native.step import Draw, Drawn

GREEDY = 1e-6
"""Below this temperature the likeliest token is certain, and logits divided by it may overflow."""


def draw_tokens(logits_SV: Tensor, draws: Sequence[tuple[Draw, int]]) -> list[Drawn]:
    """Choose a token for each row; `draws` are how, and the position that the token will have."""
    return [_draw(logits_V, how, position) for logits_V, (how, position) in zip(logits_SV, draws, strict=True)]


def _draw(logits_V: Tensor, how: Draw, position: int) -> Drawn:
    if how.temperature < GREEDY:
        token = int(logits_V.argmax())
    else:
        token = _sample(logits_V.double() / how.temperature, how, uniform(how.seed, position))
    if how.logprobs is None:
        return Drawn(token)
    logprobs_V = torch.log_softmax(logits_V, dim=-1)
    best = logprobs_V.topk(min(how.logprobs, len(logprobs_V)))
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Drawn(token, float(logprobs_V[token]), top)


def _sample(logits_V: Tensor, how: Draw, chance: float) -> int:
    """Cut to the candidates (top-k, then the nucleus of Holtzman et al. 2020), and invert their distribution."""
    order_V, sorted_V = None, logits_V
    if how.top_p < 1 or 0 < how.top_k < len(logits_V):
        sorted_V, order_V = logits_V.sort(descending=True, stable=True)
        sorted_V = sorted_V[: how.top_k] if how.top_k else sorted_V
    cumulative_V = torch.softmax(sorted_V, dim=-1).cumsum(-1)
    if how.top_p < 1:
        kept = int((cumulative_V < how.top_p).sum()) + 1
        cumulative_V = cumulative_V[:kept]
    total = float(cumulative_V[-1])
    chosen = int(torch.searchsorted(cumulative_V, torch.tensor(chance * total, dtype=torch.float64), right=True))
    chosen = min(chosen, len(cumulative_V) - 1)
    return chosen if order_V is None else int(order_V[chosen])


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that seed and position alone decide."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
