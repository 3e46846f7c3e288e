"""What trainings say of a variant: the objective, its mean over seeds and how sure that is."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arctic_api.ablation import Objective

PERPLEXITY = "perplexity/"

_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""The 97.5% quantile of Student's t, by degrees of freedom from 1; the normal one differs by less than 5% beyond."""
_NORMAL_975 = 1.96


class NoFigure(ValueError):  # noqa: N818 - names what is missing
    """A training was not judged by what the objective asks for; the message says what to write."""


def objective(wanted: Objective, figures: Mapping[str, float]) -> float:
    """Return the weighted mean of log perplexity over the objective's categories, in nats a token: less is better."""
    missing = [category for category in wanted.perplexity if f"{PERPLEXITY}{category}" not in figures]
    if missing:
        there = ", ".join(name.removeprefix(PERPLEXITY) for name in sorted(figures)) or "none"
        raise NoFigure(
            f"objective.perplexity: there is no held-out text of the category {missing[0]} (of {there} there is): name "
            "one of these, or add a source to training.data.validation"
        )
    nats = sum(weight * math.log(figures[f"{PERPLEXITY}{name}"]) for name, weight in wanted.perplexity.items())
    return nats / sum(wanted.perplexity.values())


def figures_of(wanted: Objective, value: float) -> dict[str, float]:
    """Return figures of which the objective is a value: each category's is the mean of all."""
    return dict.fromkeys((f"{PERPLEXITY}{category}" for category in wanted.perplexity), math.exp(value))


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, and its 95% interval by Student's t: without end for one seed."""

    value: float
    low: float
    high: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Return the mean of some values, one a seed."""
        value, count = statistics.fmean(values), len(values)
        if count == 1:
            return cls(value, -math.inf, math.inf, 1)
        quantile = _T_975[count - 2] if count - 2 < len(_T_975) else _NORMAL_975
        half = quantile * statistics.stdev(values) / math.sqrt(count)
        return cls(value, value - half, value + half, count)


@dataclass(frozen=True)
class Rank:
    """A variant in the ranking."""

    variant: str
    tokens: int
    """Of each of its trainings."""
    mean: Mean


def ranking(found: Mapping[str, tuple[int, Sequence[float]]]) -> list[Rank]:
    """Return variants, those that came furthest first, of these the best first.

    Args:
        found: by variant, the tokens that all of its trainings have come to, and the objective there by seed.
    """
    ranks = [Rank(name, tokens, Mean.of(values)) for name, (tokens, values) in found.items()]
    return sorted(ranks, key=lambda rank: (-rank.tokens, rank.mean.value))
