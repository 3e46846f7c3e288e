"""Choosing tokens from logits: each row by itself, a function of the row, the request's seed and the position."""

import hashlib
import struct
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from arctic_workers.inference.engines.native.step import Adjustment, Draw, Drawn

GREEDY = 1e-6
"""Below this temperature the likeliest token is certain, and logits divided by it may overflow."""
_LEAST = torch.finfo(torch.float64).min


def draw_tokens(logits_SV: Tensor, likeliest: Sequence[int], draws: Sequence[tuple[Draw, int]]) -> list[Drawn]:
    """Choose a token for each row; `draws` are how, and the position that the token will have."""
    tokens = list(likeliest)
    for row, (how, position) in enumerate(draws):
        if how.adjustment is not None or how.temperature >= GREEDY:
            tokens[row] = _draw(logits_SV[row], how, position)
    drawn = [Drawn(token) for token in tokens]
    if told := {row: how.logprobs for row, (how, _) in enumerate(draws) if how.logprobs is not None}:
        rows, tops = list(told), list(told.values())
        for row, one in zip(rows, tell_tokens(logits_SV, rows, [tokens[row] for row in rows], tops), strict=True):
            drawn[row] = one
    return drawn


def tell_tokens(logits_SV: Tensor, rows: Sequence[int], tokens: Sequence[int], tops: Sequence[int]) -> list[Drawn]:
    """Return a token of each of some rows with its logprob, and with so many of the likeliest."""
    told = []
    at = 0
    for top, group in groupby(tops):
        end = at + len(list(group))
        told += _tell(logits_SV[list(rows[at:end])], tokens[at:end], top)
        at = end
    return told


def _tell(logits_RV: Tensor, tokens: Sequence[int], top: int) -> list[Drawn]:
    logprobs_RV = torch.log_softmax(logits_RV, dim=-1)
    values = logprobs_RV.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    best = logprobs_RV.topk(min(top, logprobs_RV.shape[1]))
    likeliest = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        Drawn(token, value, tuple(zip(*pairs, strict=True)))
        for token, value, pairs in zip(tokens, values, likeliest, strict=True)
    ]


def _draw(logits_V: Tensor, how: Draw, position: int) -> int:
    if how.adjustment is not None:
        logits_V = _adjust(logits_V, how.adjustment, position)
    if how.temperature < GREEDY:
        return int(logits_V.argmax())
    # Infinite ones, as those of banned tokens are, have no differences: where all are, nothing would be left to choose.
    finite_V = (logits_V.double() / how.temperature).nan_to_num_(nan=_LEAST)
    return _sample(finite_V, how, uniform(how.seed, position))


def _adjust(logits_V: Tensor, how: Adjustment, position: int) -> Tensor:
    """Ban, bias and penalise tokens, in vLLM's order."""
    logits_V = logits_V.clone()
    if position < how.banned_before:
        logits_V[list(how.banned)] = -torch.inf
    if how.bias:
        tokens, biases = zip(*how.bias, strict=True)
        logits_V[list(tokens)] += torch.tensor(biases, dtype=logits_V.dtype)
    if how.counts:
        tokens, counts = zip(*how.counts, strict=True)
        counts_N = torch.tensor(counts, dtype=logits_V.dtype)
        seen_N = logits_V[list(tokens)]
        seen_N = torch.where(seen_N > 0, seen_N / how.repetition_penalty, seen_N * how.repetition_penalty)
        logits_V[list(tokens)] = seen_N - how.frequency_penalty * counts_N - how.presence_penalty * (counts_N > 0)
    return logits_V


def _sample(logits_V: Tensor, how: Draw, chance: float) -> int:
    """Cut to the candidates (top-k, min-p, then the nucleus of Holtzman et al. 2020), and invert their distribution.

    All logits are finite, so the likeliest token is always a candidate.
    """
    order_V, sorted_V = None, logits_V
    if how.top_p < 1 or how.min_p > 0 or 0 < how.top_k < len(logits_V):
        sorted_V, order_V = logits_V.sort(descending=True, stable=True)
        sorted_V = sorted_V[: how.top_k] if how.top_k else sorted_V
    if how.min_p > 0:
        sorted_V = sorted_V[(sorted_V - sorted_V[0]).exp() >= how.min_p]
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
