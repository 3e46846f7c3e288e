"""What a loss becomes with more tokens: a power law over those that were trained, with its uncertainty. Needs NumPy.

For a given exponent the floor and the scale follow by least squares, so the best exponent is looked for among many.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEAST_POINTS = 4
RESAMPLES = 400
_EXPONENTS = np.geomspace(0.01, 2.0, 400)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PowerLaw:
    """loss = floor + scale x (tokens / first) ** -exponent (as Hoffmann et al., 2022, for one size of model)."""

    floor: float
    scale: float
    exponent: float
    first: float
    """Tokens of the first point, which the fit is made in units of."""
    resampled: Array
    """The same of resampled residuals: floor, scale, exponent, [resamples, 3]."""

    def at(self, tokens: float) -> tuple[float, float, float]:
        """Return the loss at a number of tokens, and the ends of its 95% interval."""
        ratio = tokens / self.first
        value = self.floor + self.scale * ratio**-self.exponent
        floors, scales, exponents = self.resampled.T
        low, high = np.quantile(floors + scales * ratio**-exponents, [0.025, 0.975])
        return float(value), float(min(low, value)), float(max(high, value))

    def exponent_interval(self) -> tuple[float, float]:
        """Return the 95% interval of the exponent."""
        low, high = np.quantile(self.resampled[:, 2], [0.025, 0.975])
        return float(low), float(high)


def fit(points: Sequence[tuple[float, float]], seed: int = 0) -> PowerLaw | None:
    """Fit a power law to tokens and losses; None where there are too few points, or they do not fall."""
    if len({tokens for tokens, _ in points}) < LEAST_POINTS:
        return None
    tokens, losses = (np.array(values, dtype=np.float64) for values in zip(*sorted(points), strict=True))
    first = float(tokens[0])
    [best] = _fitted(tokens / first, losses[None])
    floor, scale, exponent = map(float, best)
    if scale <= 0:
        return None
    expected = floor + scale * (tokens / first) ** -exponent
    # Residuals are too small by what three parameters take up.
    residuals = (losses - expected) * np.sqrt(len(losses) / max(1, len(losses) - 3))
    generator = np.random.default_rng(seed)
    drawn = expected + generator.choice(residuals, (RESAMPLES, len(losses)))
    return PowerLaw(floor, scale, exponent, first, _fitted(tokens / first, drawn))


def _fitted(tokens: Array, losses: Array) -> Array:
    """Return floor, scale and exponent of each row of losses, no floor below zero: [rows, 3]."""
    powers = tokens[None, :] ** -_EXPONENTS[:, None]
    centred = powers - powers.mean(axis=1, keepdims=True)
    spread = (centred**2).sum(axis=1)
    scales = (losses - losses.mean(axis=1, keepdims=True)) @ centred.T / spread
    floors = losses.mean(axis=1, keepdims=True) - scales * powers.mean(axis=1)
    # Where the line would go below zero, it goes through it.
    through = (losses @ powers.T) / (powers**2).sum(axis=1)
    scales, floors = np.where(floors < 0, through, scales), np.maximum(floors, 0.0)
    errors = ((losses[:, None, :] - floors[..., None] - scales[..., None] * powers) ** 2).sum(axis=2)
    best = errors.argmin(axis=1)
    rows = np.arange(len(losses))
    return np.stack([floors[rows, best], scales[rows, best], _EXPONENTS[best]], axis=1)
