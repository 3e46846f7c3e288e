"""Costs of a machine from times that were measured on it: few observations, many costs, all of them positive.

Greatest likelihood with a prior: the logarithm of a measured time is off by `NOISE`, that of a cost by `DOUBT` from
where it begins. What the observations say nothing of stays there; what they say outweighs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

NOISE = 0.03
"""Standard deviation of the logarithm of a time."""
DOUBT = 1.0
"""Standard deviation of the logarithm of a cost before anything is measured."""

Costs = tuple[float, ...]
Observation = tuple[Callable[[Costs], float], float]
"""What predicts a time from costs, and the seconds that it took."""


def fitted(typical: Costs, observations: Sequence[Observation]) -> Costs:
    """Return the likeliest costs. Needs scipy."""
    from scipy.optimize import least_squares

    begin = [math.log(cost) for cost in typical]

    def residuals(logarithms: Sequence[float]) -> list[float]:
        costs = tuple(math.exp(value) for value in logarithms)
        off = [(math.log(predict(costs)) - math.log(took)) / NOISE for predict, took in observations]
        return [*off, *((now - then) / DOUBT for now, then in zip(logarithms, begin, strict=True))]

    # A time that somebody else's work has spoilt must not decide: beyond the usual noise it counts less.
    return tuple(math.exp(value) for value in least_squares(residuals, begin, loss="soft_l1").x)
