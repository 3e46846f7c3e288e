"""Which source each sequence of a stage is drawn from, and which part of it. Pure: a function of seed and position.

Sources lie side by side on [0, 1), each as wide as its weight. Step t with n sequences looks at the n points
(j + u_t) / n (systematic sampling), so that each source gets the floor or the ceiling of n x weight in *every* step;
u_t visits the multiples of 1 / PERIOD in golden-ratio order, so that the mean over steps closes in on the weight too.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

PERIOD = 1024
STRIDE = 633  # nearest odd number to PERIOD x 0.618...: consecutive offsets are far apart, and all of them occur
_MASK = (1 << 64) - 1

Counts = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]


def key(*parts: object) -> int:
    """Return 64 bits that depend on all `parts`: the root of every pseudo-random choice, equal on all machines."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def _sample(weights: Weights, sequences: int, offset: int, steps: Counts) -> Counts:
    """Return how many sequences each of some steps takes from each source: [steps, sources].

    `weights` are those of each step, [steps or 1, sources], each summing to 1.
    """
    edges = np.minimum(np.cumsum(weights, axis=1), 1.0)
    edges[:, -1] = 1.0
    shifts = (offset + steps * STRIDE) % PERIOD / PERIOD
    below = np.maximum(np.ceil(sequences * edges - shifts[:, None]).astype(np.int64), 0)
    return np.diff(below, axis=1, prepend=0)


@dataclass(frozen=True)
class Mixture:
    """Draws of one stage.

    Args:
        weights: weight of each source, summing to 1.
        sequences: sequences of one step.
        offset: where the sequence of u_t starts; any integer.
    """

    weights: Sequence[float]
    sequences: int
    offset: int = 0

    @cached_property
    def _table(self) -> Counts:
        """Counts of one period of steps, [PERIOD, sources]."""
        return _sample(np.array([self.weights]), self.sequences, self.offset, np.arange(PERIOD))

    @cached_property
    def _drawn(self) -> Counts:
        """Counts before each step of a period, and of the whole period in the last row: [PERIOD + 1, sources]."""
        return _summed(self._table)

    def counts(self, step: int) -> Counts:
        """Return how many sequences of step `step` each source gives: [sources], summing to `sequences`."""
        return np.asarray(self._table[step % PERIOD])

    def drawn_before(self, step: int) -> Counts:
        """Return how many sequences each source gave in the steps before `step`: [sources]."""
        periods, rest = divmod(step, PERIOD)
        return np.asarray(periods * self._drawn[PERIOD] + self._drawn[rest])


@dataclass(frozen=True)
class Ramp:
    """Draws of a stage whose weights change evenly, from its first step to its last.

    Args:
        first, last: weight of each source at the stage's beginning and at its end, each summing to 1.
        sequences: sequences of one step.
        steps: of the stage.
        offset: where the sequence of u_t starts; any integer.
    """

    first: Sequence[float]
    last: Sequence[float]
    sequences: int
    steps: int
    offset: int = 0

    def counts(self, step: int) -> Counts:
        """Return how many sequences of step `step` each source gives: [sources], summing to `sequences`."""
        return np.asarray(self._between(step, step + 1)[0])

    def drawn_before(self, step: int) -> Counts:
        """Return how many sequences each source gave in the steps before `step`: [sources].

        A run that skips data after a jump of its loss gets beyond the stage's end: shares stay as they are there.
        """
        whole = min(step // PERIOD, len(self._blocks) - 1)
        return np.asarray(self._blocks[whole] + self._between(whole * PERIOD, step).sum(axis=0))

    @cached_property
    def _blocks(self) -> Counts:
        """Counts before each PERIOD of steps: a long stage is not held step by step."""
        starts = range(0, self.steps - PERIOD + 1, PERIOD)
        sums = [self._between(start, start + PERIOD).sum(axis=0) for start in starts]
        return _summed(np.array(sums, np.int64).reshape(-1, len(self.first)))

    def _between(self, begin: int, end: int) -> Counts:
        steps = np.arange(begin, end)
        shares = np.minimum((steps + 0.5) / self.steps, 1.0)[:, None]
        first, last = np.array(self.first), np.array(self.last)
        return _sample(first + (last - first) * shares, self.sequences, self.offset, steps)


def _summed(counts: Counts) -> Counts:
    """Return the sums before each row, and of all: one row more."""
    return np.concatenate([np.zeros((1, counts.shape[1]), np.int64), np.cumsum(counts, axis=0)])


def permute(index: int, size: int, seed: int) -> int:
    """Return the place of `index` in a pseudo-random order of range(size), without holding that order in memory.

    A four-round Feistel network over the smallest even number of bits that holds `size`, walked until it is inside
    (Black and Rogaway, 2002).
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            left, right = right, left ^ (_mix(right, seed + turn) & mask)
        index = left << half | right
        if index < size:
            return index


def _mix(value: int, seed: int) -> int:
    """Return 64 well mixed bits (splitmix64's finalizer: Steele et al., 2014)."""
    z = (value * 0x9E3779B97F4A7C15 + seed * 0xD1B54A32D192ED03 + 0x9E3779B97F4A7C15) & _MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)
