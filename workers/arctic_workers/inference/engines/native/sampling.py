"""Choosing tokens from logits: each row by itself, a function of the row, the request's seed and the position.

Where the logits are on a GPU all is computed there, and the host waits once: for the tokens and what is told of them.
"""

import hashlib
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from arctic_model import devices
from arctic_model.devices import Wait, on_device
from arctic_workers.inference.engines.native.step import Draw, Drawn

GREEDY = 1e-6
"""Below this temperature the likeliest token is certain, and logits divided by it may overflow."""
AT_ONCE = {"cuda": 1 << 21, "cpu": 1 << 15}
"""Logits that are drawn from together: as many as keep a GPU busy, or as a CPU's cache holds in fp64."""
_LEAST = torch.finfo(torch.float64).min
_ONE = 2.0**62
"""What stands for 1 in sums of whole numbers."""

Likeliest = Sequence[int] | Tensor
"""The likeliest token of each row: numbers, or [S] on a GPU that has not been waited for."""
_Way = tuple[Draw, int]
"""How a token is chosen, and the position that it will have."""


def draw_tokens(logits_SV: Tensor, likeliest: Likeliest, draws: Sequence[_Way]) -> list[Drawn]:
    """Choose a token for each row; `draws` are how, and the position that the token will have."""
    told = {row: how.logprobs for row, (how, _) in enumerate(draws) if how.logprobs is not None}
    drawn = [row for row, (how, _) in enumerate(draws) if how.adjustment is not None or how.temperature >= GREEDY]
    if not isinstance(likeliest, Tensor):
        if not (told or drawn):
            return [Drawn(token) for token in likeliest]
        likeliest = _tensor(likeliest, torch.int64, logits_SV.device)
    tokens_S = _draw_rows(logits_SV, likeliest, draws, drawn) if drawn else likeliest
    tellings = []
    if told:
        rows_R = _tensor(told, torch.int64, logits_SV.device)
        tellings = list(_tell(logits_SV.index_select(0, rows_R), tokens_S[rows_R], list(told.values())))
    tokens, answers = _read(tokens_S, tellings, Wait.TOKENS)
    chosen = [Drawn(token) for token in tokens]
    for row, answer in zip(told, answers, strict=True):
        chosen[row] = answer
    return chosen


def tell_tokens(logits_SV: Tensor, rows: Sequence[int], tokens: Sequence[int], tops: Sequence[int]) -> list[Drawn]:
    """Return a token of each of some rows with its logprob, and with so many of the likeliest."""
    rows_R, tokens_R = (_tensor(numbers, torch.int64, logits_SV.device) for numbers in (rows, tokens))
    return _read(tokens_R[:0], list(_tell(logits_SV.index_select(0, rows_R), tokens_R, tops)), Wait.PROMPT)[1]


def _tensor(numbers: Iterable[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    return on_device(torch.tensor(list(numbers), dtype=dtype), device)


def _columns(table: Sequence[Sequence[float]], beside: Tensor) -> tuple[Tensor, ...]:
    """Return the columns of a table, [R, 1] each, in fp64, on the device of another tensor."""
    return on_device(torch.tensor(table, dtype=torch.float64), beside.device)[..., None].unbind(1)


def _tell(logits_RV: Tensor, tokens_R: Tensor, tops: Sequence[int]) -> Iterator[Tensor]:
    """Yield what rows are told, where one is told of as many as the next together: a token, its logprob, the likeliest
    tokens, their logprobs; in fp64, which holds tokens too.
    """
    at = 0
    for top, group in groupby(tops):
        end = at + len(list(group))
        logprobs_RV = torch.log_softmax(logits_RV[at:end], dim=-1)
        tokens_R1 = tokens_R[at:end, None]
        best = logprobs_RV.topk(min(top, logprobs_RV.shape[1]))
        columns = (tokens_R1, logprobs_RV.gather(1, tokens_R1), best.indices, best.values)
        yield torch.cat([column.double() for column in columns], dim=1)
        at = end


def _read(tokens_S: Tensor, tellings: Sequence[Tensor], wait: Wait) -> tuple[list[int], list[Drawn]]:
    """Wait for tokens and for what is told beside them."""
    flat = torch.cat([tokens_S.double(), *(telling.flatten() for telling in tellings)]) if tellings else tokens_S
    values = iter(devices.on_host(flat, wait))
    tokens = [int(next(values)) for _ in range(len(tokens_S))]
    told = []
    for rows, columns in (telling.shape for telling in tellings):
        for _ in range(rows):
            token, logprob, *best = (next(values) for _ in range(columns))
            half = len(best) // 2
            told.append(Drawn(int(token), logprob, tuple(zip(map(int, best[:half]), best[half:], strict=True))))
    return tokens, told


def _draw_rows(logits_SV: Tensor, likeliest_S: Tensor, draws: Sequence[_Way], rows: Sequence[int]) -> Tensor:
    """Return the tokens of all rows, [S]: some are drawn, of the others it is the likeliest."""
    tokens_S = likeliest_S.clone()
    by_kind: dict[tuple[bool, bool], list[int]] = {}
    for row in rows:
        by_kind.setdefault(_kind(draws[row][0], logits_SV.shape[1]), []).append(row)
    at_once = max(AT_ONCE[logits_SV.device.type] // logits_SV.shape[1], 1)
    for alike in by_kind.values():
        for at in range(0, len(alike), at_once):
            some = alike[at : at + at_once]
            rows_R = _tensor(some, torch.int64, logits_SV.device)
            tokens_S[rows_R] = _draw(logits_SV.index_select(0, rows_R), [draws[row] for row in some])
    return tokens_S


def _kind(how: Draw, vocabulary: int) -> tuple[bool, bool]:
    """Whether it is the likeliest after adjustments, and whether candidates are cut: rows alike are drawn together."""
    return how.temperature < GREEDY, how.top_p < 1 or how.min_p > 0 or 0 < how.top_k < vocabulary


def _draw(logits_RV: Tensor, draws: Sequence[_Way]) -> Tensor:
    """Draw a token for each of some rows of one kind, [R]; overwrites the logits."""
    _adjust(logits_RV, draws)
    ways = [how for how, _ in draws]
    is_greedy, cuts = _kind(ways[0], logits_RV.shape[1])
    if is_greedy:
        return logits_RV.argmax(-1)
    numbers = [(how.temperature, uniform(how.seed, position)) for how, position in draws]
    temperatures_R1, chances_R1 = _columns(numbers, logits_RV)
    # Infinite ones, as those of banned tokens are, have no differences: where all are, nothing would be left to choose.
    finite_RV = (logits_RV.double() / temperatures_R1).nan_to_num_(nan=_LEAST)
    return _sample_cut(finite_RV, ways, chances_R1) if cuts else _sample(finite_RV, chances_R1)


def _adjust(logits_RV: Tensor, draws: Sequence[_Way]) -> None:
    """Ban, bias and penalise tokens, in vLLM's order, in place."""
    adjusted = [(row, how.adjustment, at) for row, (how, at) in enumerate(draws) if how.adjustment is not None]
    banned = [
        (row, [(token, -math.inf) for token in how.banned]) for row, how, at in adjusted if at < how.banned_before
    ]
    if places := _places(banned, logits_RV.device):
        rows_N, tokens_N, logits_N = places
        logits_RV[rows_N, tokens_N] = logits_N
    if places := _places(((row, how.bias) for row, how, _ in adjusted), logits_RV.device):
        rows_N, tokens_N, biases_N = places
        logits_RV[rows_N, tokens_N] += biases_N
    if places := _places(((row, how.counts) for row, how, _ in adjusted), logits_RV.device):
        rows_N, tokens_N, counts_N = places
        penalties = [(0.0, 0.0, 1.0)] * len(draws)
        for row, how, _ in adjusted:
            penalties[row] = how.frequency_penalty, how.presence_penalty, how.repetition_penalty
        penalties_R3 = on_device(torch.tensor(penalties, dtype=logits_RV.dtype), logits_RV.device)
        frequency_N, presence_N, repetition_N = penalties_R3[rows_N].unbind(1)
        seen_N = logits_RV[rows_N, tokens_N]
        seen_N = torch.where(seen_N > 0, seen_N / repetition_N, seen_N * repetition_N)
        logits_RV[rows_N, tokens_N] = seen_N - frequency_N * counts_N - presence_N * (counts_N > 0)


def _places(
    by_row: Iterable[tuple[int, Sequence[tuple[int, float]]]], device: torch.device
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return rows, tokens and what goes with each of them, in fp32; None where there are none."""
    rows: list[int] = []
    pairs: list[tuple[int, float]] = []
    for row, of_row in by_row:
        rows += [row] * len(of_row)
        pairs += of_row
    if not pairs:
        return None
    tokens, values = zip(*pairs, strict=True)
    return (
        _tensor(rows, torch.int64, device),
        _tensor(tokens, torch.int64, device),
        _tensor(values, torch.float32, device),
    )


def _sample(logits_RV: Tensor, chances_R1: Tensor) -> Tensor:
    """Invert the distribution over all tokens."""
    sums_RV = _running_sums(torch.softmax(logits_RV, dim=-1))
    last = logits_RV.shape[1] - 1
    return torch.searchsorted(sums_RV, chances_R1 * sums_RV[:, -1:], right=True)[:, 0].clamp(max=last)


def _sample_cut(logits_RV: Tensor, ways: Sequence[Draw], chances_R1: Tensor) -> Tensor:
    """Cut to the candidates (top-k, min-p, then the nucleus of Holtzman et al. 2020), and invert their distribution.

    All logits are finite, so the likeliest token is always a candidate.
    """
    sorted_RV, order_RV = logits_RV.sort(descending=True, stable=True)
    vocabulary = logits_RV.shape[1]
    most = [min(how.top_k or vocabulary, vocabulary) for how in ways]
    cuts = [(top_k, how.min_p, how.top_p) for top_k, how in zip(most, ways, strict=True)]
    top_k_R1, min_p_R1, top_p_R1 = _columns(cuts, logits_RV)
    sorted_RC = sorted_RV[:, : max(most)]
    dropped_RC = torch.arange(max(most), device=logits_RV.device) >= top_k_R1
    if any(how.min_p > 0 for how in ways):
        dropped_RC |= (sorted_RC - sorted_RC[:, :1]).exp() < min_p_R1
    sums_RC = _running_sums(torch.softmax(sorted_RC.masked_fill(dropped_RC, -torch.inf), dim=-1))
    last_R1 = (~dropped_RC).sum(-1, keepdim=True) - 1
    nucleus_R1 = (sums_RC < top_p_R1).sum(-1, keepdim=True)
    last_R1 = torch.where(top_p_R1 < 1, torch.minimum(last_R1, nucleus_R1), last_R1)
    places_R1 = torch.searchsorted(sums_RC, chances_R1 * sums_RC.gather(1, last_R1), right=True)
    return order_RV.gather(1, torch.minimum(places_R1, last_R1))[:, 0]


def _running_sums(shares_RC: Tensor) -> Tensor:
    """Sums of each row's shares of one, up to each place."""
    return whole_sums(shares_RC) if shares_RC.is_cuda else shares_RC.cumsum(-1)


def whole_sums(shares_RC: Tensor) -> Tensor:
    """The same in whole numbers: a GPU adds in an order that depends on the number of rows."""
    return (shares_RC * _ONE).long().cumsum(-1).double() / _ONE


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that seed and position alone decide."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
