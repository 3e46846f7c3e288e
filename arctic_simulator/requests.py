"""Requests by the time at which they come: read from a file, or drawn from a seed as users come, in bursts."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path


@dataclass(frozen=True)
class Arrival:
    """A request as a trace has it."""

    seconds: float
    """Since the trace began."""
    prompt: int
    """Tokens."""
    answer: int
    """Tokens."""


def read_trace(path: Path) -> list[Arrival]:
    """Read lines of JSON, each an object with the fields of `Arrival`. Raises ValueError that names the line."""
    arrivals = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            content = json.loads(line)
            arrival = Arrival(float(content["seconds"]), int(content["prompt"]), int(content["answer"]))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise ValueError(
                f'{path}, line {number}: {error!r}; write {{"seconds": 1.5, "prompt": 100, "answer": 20}}'
            ) from None
        if not math.isfinite(arrival.seconds) or arrival.prompt < 1 or arrival.answer < 1:
            raise ValueError(f"{path}, line {number}: seconds must be finite, prompt and answer at least 1 token each")
        arrivals.append(arrival)
    if not arrivals:
        raise ValueError(f"{path} has no requests: write a line for each")
    if any(later.seconds < earlier.seconds for earlier, later in pairwise(arrivals)):
        raise ValueError(f"{path}: seconds fall from one line to the next; sort the lines by them")
    return arrivals


def write_trace(path: Path, arrivals: Iterable[Arrival]) -> None:
    """Write what `read_trace` reads."""
    lines = (
        json.dumps({"seconds": round(each.seconds, 6), "prompt": each.prompt, "answer": each.answer})
        for each in arrivals
    )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@dataclass(frozen=True)
class Crowd:
    """Users: a Poisson process whose rate changes between quiet and busy times, and lengths that are log-normal.

    Requests of real services come so, in bursts and with long tails (BurstGPT, Wang et al. 2024, arXiv 2401.17644).
    """

    rate: float
    """Requests a second in quiet times."""
    busy_rate: float
    """In busy ones."""
    quiet_seconds: float
    """Mean length of a quiet time, which is exponential; so is a busy one's."""
    busy_seconds: float
    prompt: float
    """Median of tokens."""
    answer: float
    spread: float
    """Standard deviation of the logarithm of both."""
    longest: int
    """Most tokens of a prompt; and of an answer."""

    def arrivals(self, seconds: float, seed: int) -> list[Arrival]:
        """Draw a trace of so many seconds; the same one from the same seed."""
        return list(self._arrivals(seconds, random.Random(seed)))

    def _arrivals(self, seconds: float, drawn: random.Random) -> Iterator[Arrival]:
        begin, busy = 0.0, False
        while begin < seconds:
            end = min(begin + drawn.expovariate(1 / (self.busy_seconds if busy else self.quiet_seconds)), seconds)
            rate = self.busy_rate if busy else self.rate
            at = begin + drawn.expovariate(rate)
            while at < end:
                yield Arrival(at, self._length(self.prompt, drawn), self._length(self.answer, drawn))
                at += drawn.expovariate(rate)
            begin, busy = end, not busy

    def _length(self, median: float, drawn: random.Random) -> int:
        return max(1, min(round(median * math.exp(drawn.gauss(0, self.spread))), self.longest))


def faster(arrivals: Iterable[Arrival], times: float) -> list[Arrival]:
    """Return the same requests with the time between them divided."""
    return [Arrival(each.seconds / times, each.prompt, each.answer) for each in arrivals]
