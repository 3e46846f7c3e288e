"""How many tokens a step may carry so that it does not take too long: measured, not assumed. No torch, no clock."""

import math
from bisect import bisect_left
from collections import deque
from itertools import pairwise

LEAST_OF_PROMPTS = 16
"""Tokens of prompts that a step may carry however slow it is: or a prompt would never be read."""
_REMEMBERED = 15
"""Steps of about the same size of which the times are kept."""
_STALE = 512
"""Steps after which a size that was not seen again counts as unknown: the machine may have changed."""


class StepTimes:
    """Seconds that steps took, by their tokens: the latest of each power of two seen lately, lines in between."""

    def __init__(self) -> None:
        self._latest: dict[int, deque[tuple[int, float]]] = {}
        self._seen: dict[int, int] = {}
        self._steps = 0
        self._curves: dict[float, list[tuple[float, float]]] = {}

    def observe(self, tokens: int, seconds: float) -> None:
        """Take the time of a step."""
        size = tokens.bit_length()
        self._latest.setdefault(size, deque(maxlen=_REMEMBERED)).append((tokens, seconds))
        self._steps += 1
        self._seen[size] = self._steps
        for stale in [each for each, seen in self._seen.items() if self._steps - seen >= _STALE]:
            del self._latest[stale], self._seen[stale]
        self._curves.clear()

    def knows(self, tokens: int) -> bool:
        """Whether steps of about that size were seen lately."""
        return tokens.bit_length() in self._latest

    def curve(self, quantile: float = 0.5) -> list[tuple[float, float]]:
        """Return tokens and the seconds that so large a share of such steps took at most; both ascend.

        Where a smaller step was slower than a larger one, the size that was seen later is right: one slow step of a
        size that hardly comes again says nothing about all larger ones.
        """
        if (known := self._curves.get(quantile)) is not None:
            return known
        points: dict[int, tuple[float, float]] = {}
        for size in sorted(self._latest, key=self._seen.__getitem__, reverse=True):
            tokens, seconds = (sorted(values) for values in zip(*self._latest[size], strict=True))
            took = seconds[min(int(quantile * len(seconds)), len(seconds) - 1)]
            least = max((points[other][1] for other in points if other < size), default=0.0)
            most = min((points[other][1] for other in points if other > size), default=math.inf)
            points[size] = float(tokens[len(tokens) // 2]), min(max(took, least), most)
        curve = self._curves[quantile] = [points[size] for size in sorted(points)]
        return curve

    def seconds(self, tokens: int) -> float:
        """Return what a step of so many tokens takes; 0 where nothing is known yet."""
        return _on_curve(self.curve(), tokens)


def _on_curve(points: list[tuple[float, float]], tokens: int) -> float:
    """Below the first point it costs as much as that, beyond the last each token as much as one of the last."""
    if not points:
        return 0.0
    index = bisect_left(points, (tokens, 0.0))
    if index == 0:
        return points[0][1]
    if index == len(points):
        last, seconds = points[-1]
        return seconds * max(tokens / last, 1.0)
    (low, fast), (high, slow) = points[index - 1 : index + 1]
    return fast + (slow - fast) * (tokens - low) / (high - low)


class TokenBudget:
    """Tokens of a step: at most `most`, fewer where a target for the time between two tokens asks for it."""

    def __init__(self, most: int, target: float | None = None) -> None:
        """`target` is in seconds; nine steps of ten are kept within it, as far as their prompts decide that."""
        self.most = most
        self.times = StepTimes()
        self._target = target

    def tokens(self, generating: int) -> int:
        """Return the budget of a step that carries a token for so many sequences.

        While none generates nobody waits for a next token, and prompts are read as fast as can be.
        """
        if self._target is None or not generating:
            return self.most
        return min(self.most, max(self._within(self._target), generating + LEAST_OF_PROMPTS))

    def _within(self, target: float) -> int:
        """Return how many tokens a step carries that takes `target`."""
        points = self.times.curve(0.9)
        if not points:
            return self.most
        if points[-1][1] <= target:
            tokens, seconds = points[-1]
            return math.floor(min(tokens * target / seconds, self.most)) if seconds else self.most
        for (low, fast), (high, slow) in pairwise(points):
            if fast <= target < slow:
                return math.floor(low + (high - low) * (target - fast) / (slow - fast))
        return 0
