"""In how many chunks rows travel, found by trying in the first steps of an attempt, which count like all others.

More chunks hide more and cost more launches and smaller products. What is faster depends on link, processor and model.
No sum depends on the number of chunks, so trying changes nothing of what is learnt.
"""

import statistics
from collections.abc import Sequence

CANDIDATES = (2, 1, 4)
"""Numbers of chunks that are tried, the one first that is taken where none is much faster."""
ROUNDS = 3
NOTABLE = 0.02
"""Share of a step's time that another number must save to be chosen instead of the first."""
_CACHE_LINE = 64


class Probe:
    """Tries each number of chunks a few times in turn; pure, all ranks run it in step."""

    def __init__(self, candidates: Sequence[int]) -> None:
        """With one candidate there is nothing to try."""
        self.candidates = tuple(candidates)
        self._taken: list[float] = []
        # The first step gives out memory, whichever the number.
        self._steps = 1 + ROUNDS * len(self.candidates) if len(self.candidates) > 1 else 0

    @property
    def under_way(self) -> bool:
        """Whether there are steps to try yet."""
        return len(self._taken) < self._steps

    @property
    def current(self) -> int:
        """Chunks of the next step while the probe is under way."""
        return self.candidates[(len(self._taken) - 1) % len(self.candidates)] if self._taken else self.candidates[0]

    def note(self, seconds: float) -> None:
        """Take what a step with the current number took."""
        self._taken.append(seconds)

    def medians(self) -> list[float]:
        """Return the seconds of a step of each candidate, as this rank had them."""
        count = len(self.candidates)
        return [statistics.median(self._taken[1 + number :: count]) for number in range(count)]

    def choice(self, seconds: Sequence[float]) -> int:
        """Return the number to go on with, of each candidate's seconds over all ranks."""
        best = min(range(len(self.candidates)), key=lambda number: seconds[number])
        return self.candidates[best if seconds[best] < (1 - NOTABLE) * seconds[0] else 0]


def candidates_for(ranks: int, held: int, *row_bytes: int) -> tuple[int, ...]:
    """Return the numbers that may be tried where `ranks` ranks hold `held` experts each, with rows of so many bytes.

    They are those of which no sum depends: a rank that holds one expert has chunks of tokens, and libraries may add up
    in another order where an expert's rows begin within a line of the cache.
    """
    if ranks == 1:
        return (1,)
    if held == 1 or any(size % _CACHE_LINE for size in row_bytes):
        return CANDIDATES[:1]
    return tuple(number for number in CANDIDATES if number <= held)
