"""What one step asks of every rank and what comes back; on the wire both are 64-bit integers, nothing is pickled."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from arctic_workers.inference.engine import Sampling


@dataclass(frozen=True)
class Adjustment:
    """How the logits are changed before a token is chosen: only requests that ask for it have one."""

    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    bias: tuple[tuple[int, float], ...]
    banned: tuple[int, ...]
    """Tokens that are not chosen."""
    banned_before: int
    """The position from which on they may be."""
    counts: tuple[tuple[int, int], ...]
    """Tokens of the sequence, with how often the answer has each of them: those of the prompt alone have 0."""

    @classmethod
    def of(cls, sampling: Sampling, prompt: int) -> "Adjustment | None":
        """Return what a request asks for whose prompt has so many tokens, without counts; None if it is nothing."""
        banned = tuple(sorted(sampling.stop_tokens)) if sampling.min_tokens else ()
        if not (sampling.counts_tokens or sampling.logit_bias or banned):
            return None
        return cls(
            sampling.frequency_penalty,
            sampling.presence_penalty,
            sampling.repetition_penalty,
            sampling.logit_bias,
            banned,
            prompt + sampling.min_tokens,
            (),
        )


@dataclass(frozen=True)
class Draw:
    """How to choose tokens that follow a part; `logprobs` as in `Sampling`."""

    seed: int
    temperature: float
    top_p: float
    top_k: int
    logprobs: int | None
    min_p: float = 0.0
    adjustment: Adjustment | None = None

    @classmethod
    def of(cls, sampling: Sampling, prompt: int) -> "Draw":
        """Return what a rank needs of the sampling of a request whose prompt has so many tokens."""
        return cls(
            sampling.seed,
            sampling.temperature,
            sampling.top_p,
            sampling.top_k,
            sampling.logprobs,
            sampling.min_p,
            Adjustment.of(sampling, prompt),
        )


@dataclass(frozen=True)
class Known:
    """Tokens that follow the first tokens of a part and are known already, to be told the probabilities of."""

    tokens: tuple[int, ...]
    top: int
    """How many of the likeliest to tell beside each."""


@dataclass(frozen=True)
class Part:
    """Consecutive tokens of one sequence: the first is at position `start`, and `blocks` is the sequence's table.

    `dropped` blocks, which nobody sees any more, are missing between the sinks' and what follows them in the table.
    """

    start: int
    tokens: tuple[int, ...]
    blocks: tuple[int, ...]
    draw: Draw | None
    draws: int = 1
    """How many tokens are chosen, where any are: one after each of the last so many tokens."""
    known: Known | None = None
    dropped: int = 0
    adapter: int = -1
    """Which of the group's adapters is added to the weights, -1 for none."""

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.tokens)


@dataclass(frozen=True)
class Drawn:
    """A chosen or known token, with its logprob and the likeliest tokens where they were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def encode_parts(parts: Sequence[Part]) -> list[int]:
    """Return the parts as integers."""
    numbers = [len(parts)]
    for part in parts:
        numbers += (
            part.start,
            len(part.tokens),
            len(part.blocks),
            part.dropped,
            part.draws if part.draw is not None else 0,
            part.known is not None,
            part.adapter,
        )
        if part.draw is not None:
            numbers += _encode_draw(part.draw)
        if part.known is not None:
            numbers += (part.known.top, len(part.known.tokens), *part.known.tokens)
        numbers += part.tokens
        numbers += part.blocks
    return numbers


def _encode_draw(draw: Draw) -> list[int]:
    logprobs = -1 if draw.logprobs is None else draw.logprobs
    reals = map(_bits, (draw.temperature, draw.top_p, draw.min_p))
    return [draw.seed, *reals, draw.top_k, logprobs, draw.adjustment is not None, *_encode_adjustment(draw.adjustment)]


def _encode_adjustment(how: Adjustment | None) -> list[int]:
    if how is None:
        return []
    numbers = [*map(_bits, (how.frequency_penalty, how.presence_penalty, how.repetition_penalty))]
    numbers += (how.banned_before, len(how.bias), len(how.banned), len(how.counts))
    for token, bias in how.bias:
        numbers += (token, _bits(bias))
    numbers += how.banned
    numbers += chain.from_iterable(how.counts)
    return numbers


def decode_parts(numbers: Sequence[int]) -> list[Part]:
    """Return what `encode_parts` was given."""
    rest = iter(numbers)
    return [_decode_part(rest) for _ in range(next(rest))]


def _decode_part(rest: Iterator[int]) -> Part:
    start, tokens, blocks, dropped, draws, knows, adapter = islice(rest, 7)
    draw = _decode_draw(rest) if draws else None
    known = None
    if knows:
        top, count = islice(rest, 2)
        known = Known(tuple(islice(rest, count)), top)
    return Part(
        start,
        tuple(islice(rest, tokens)),
        tuple(islice(rest, blocks)),
        draw,
        draws=draws or 1,
        known=known,
        dropped=dropped,
        adapter=adapter,
    )


def _decode_draw(rest: Iterator[int]) -> Draw:
    seed, temperature, top_p, min_p, top_k, logprobs, adjusts = islice(rest, 7)
    return Draw(
        seed,
        _real(temperature),
        _real(top_p),
        top_k,
        None if logprobs < 0 else logprobs,
        _real(min_p),
        _decode_adjustment(rest) if adjusts else None,
    )


def _decode_adjustment(rest: Iterator[int]) -> Adjustment:
    frequency, presence, repetition = map(_real, islice(rest, 3))
    before, biased, banned, counted = islice(rest, 4)
    bias = tuple((next(rest), _real(next(rest))) for _ in range(biased))
    tokens = tuple(islice(rest, banned))
    counts = tuple((next(rest), next(rest)) for _ in range(counted))
    return Adjustment(frequency, presence, repetition, bias, tokens, before, counts)


def encode_drawn(drawn: Sequence[Drawn]) -> list[int]:
    """Return the chosen tokens as integers."""
    numbers = [len(drawn)]
    for one in drawn:
        numbers += (one.token, one.logprob is not None, _bits(one.logprob or 0.0), len(one.top))
        for token, logprob in one.top:
            numbers += (token, _bits(logprob))
    return numbers


def decode_drawn(numbers: Sequence[int]) -> list[Drawn]:
    """Return what `encode_drawn` was given."""
    rest = iter(numbers)
    drawn = []
    for _ in range(next(rest)):
        token, has_logprob, logprob, count = islice(rest, 4)
        top = tuple((next(rest), _real(next(rest))) for _ in range(count))
        drawn.append(Drawn(token, _real(logprob) if has_logprob else None, top))
    return drawn


def _bits(value: float) -> int:
    """The 64 bits of a double as a signed integer."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _real(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])
