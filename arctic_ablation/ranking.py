"""What trainings say of a variant: the objective, its mean over seeds and how sure that is."""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from arctic_api.ablation import Objective

PERPLEXITY = "perplexity/"

_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""The 97.5% quantile of Student's t, by degrees of freedom from 1; the normal one differs by less than 5% beyond."""
_NORMAL_975 = 1.96


def objective(wanted: Objective, figures: Mapping[str, float]) -> float:
    """Return what is wanted of a training that is judged: nats a token, of which less is better, or a share of 1.

    Args:
        wanted: weights of categories, whose log perplexity it is the mean of, or of suites.
        figures: what was found, by `perplexity/CATEGORY` or by suite.
    """
    if wanted.suites is not None:
        return _mean(wanted.suites, figures)
    weights = wanted.perplexity or {}
    return _mean(weights, {name: math.log(figures[f"{PERPLEXITY}{name}"]) for name in weights})


def _mean(weights: Mapping[str, float], values: Mapping[str, float]) -> float:
    return sum(weight * values[name] for name, weight in weights.items()) / sum(weights.values())


def _names(wanted: Objective) -> Collection[str]:
    """Return the figures of which the objective is the mean."""
    if wanted.suites is not None:
        return wanted.suites
    return [f"{PERPLEXITY}{category}" for category in wanted.perplexity or ()]


def is_judged(wanted: Objective, figures: Mapping[str, float]) -> bool:
    """Whether a training has all figures of which the objective is the mean."""
    return figures.keys() >= set(_names(wanted))


def why_unjudged(wanted: Objective, figures: Mapping[str, float]) -> str:
    """Return why a training whose held-out text was looked at has no objective; "" where it has one."""
    missing = next((name for name in _names(wanted) if name not in figures), None)
    if missing is None:
        return ""
    there = ", ".join(sorted(figures)) or "nothing"
    return (
        f"it has no {missing}: lower the learning rate if its loss is no finite number, or add text of the category to "
        f"training.data.validation if none is held out (of {there} there is)"
    )


def cost(wanted: Objective, value: float) -> float:
    """Return a value of the objective so that less is better."""
    return -value if wanted.more_is_better else value


def unit(wanted: Objective) -> str:
    """Return what values of the objective are."""
    return "share of right answers" if wanted.more_is_better else "nats a token"


def figures_of(wanted: Objective, value: float) -> dict[str, float]:
    """Return figures of which the objective is a value: each suite's or category's is the mean of all."""
    return dict.fromkeys(_names(wanted), value if wanted.suites is not None else math.exp(value))


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


def ranking(wanted: Objective, found: Mapping[str, tuple[int, Sequence[float]]]) -> list[Rank]:
    """Return variants, those that came furthest first, of these the best first.

    Args:
        wanted: the objective.
        found: by variant, the tokens that all of its trainings have come to, and the objective there by seed.
    """
    ranks = [Rank(name, tokens, Mean.of(values)) for name, (tokens, values) in found.items()]
    return sorted(ranks, key=lambda rank: (-rank.tokens, cost(wanted, rank.mean.value)))
