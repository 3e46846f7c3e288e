"""What one step asks of every rank and what comes back; on the wire both are 64-bit integers, nothing is pickled."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from arctic_workers.inference.engine import Sampling


@dataclass(frozen=True)
class Draw:
    """How to choose the token that follows a part; `logprobs` as in `Sampling`."""

    seed: int
    temperature: float
    top_p: float
    top_k: int
    logprobs: int | None

    @classmethod
    def of(cls, sampling: Sampling) -> "Draw":
        """Return what a rank needs of a request's sampling."""
        return cls(sampling.seed, sampling.temperature, sampling.top_p, sampling.top_k, sampling.logprobs)


@dataclass(frozen=True)
class Part:
    """Consecutive tokens of one sequence: the first is at position `start`, and `blocks` is the sequence's table."""

    start: int
    tokens: tuple[int, ...]
    blocks: tuple[int, ...]
    draw: Draw | None

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.tokens)


@dataclass(frozen=True)
class Drawn:
    """A chosen token, with its logprob and the likeliest tokens where they were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def encode_parts(parts: Sequence[Part]) -> list[int]:
    """Return the parts as integers."""
    numbers = [len(parts)]
    for part in parts:
        numbers += (part.start, len(part.tokens), len(part.blocks), part.draw is not None)
        if (draw := part.draw) is not None:
            logprobs = -1 if draw.logprobs is None else draw.logprobs
            numbers += (draw.seed, _bits(draw.temperature), _bits(draw.top_p), draw.top_k, logprobs)
        numbers += part.tokens
        numbers += part.blocks
    return numbers


def decode_parts(numbers: Sequence[int]) -> list[Part]:
    """Return what `encode_parts` was given."""
    rest = iter(numbers)
    return [_decode_part(rest) for _ in range(next(rest))]


def _decode_part(rest: Iterator[int]) -> Part:
    start, tokens, blocks, draws = islice(rest, 4)
    draw = None
    if draws:
        seed, temperature, top_p, top_k, logprobs = islice(rest, 5)
        draw = Draw(seed, _real(temperature), _real(top_p), top_k, None if logprobs < 0 else logprobs)
    return Part(start, tuple(islice(rest, tokens)), tuple(islice(rest, blocks)), draw)


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
