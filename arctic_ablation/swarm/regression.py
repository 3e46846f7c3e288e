"""What a loss becomes under mixtures that were not trained: a regression over whole loss curves.

A point of a curve is what a training had read of each source in each stage until then, and the objective there. One
function of that gives all points of all runs, so that a run of eight evaluations says eight things; that points of one
run err together, by its seed, is a part of the model of its own. The function is a Gaussian process (Rasmussen and
Williams, 2006): its uncertainty grows away from what was trained. It is put to the test before it is believed: each run
is foretold from all others, and where it errs by more than it says, all that it says is made wider by that much.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Kernel, WhiteKernel
from threadpoolctl import threadpool_limits

Array = npt.NDArray[np.float64]

SCALE = 0.03
"""Share of all tokens from which on more of a source is felt by its logarithm, and below which in proportion."""
_FAR, _NEAR = 1e6, 1e-3
"""Length scales that make a feature count for nothing, and one by which only equals are alike."""
_LENGTHS, _HEIGHTS = (0.3, 20.0), (0.1, 10.0)
"""Bounds of the function's length scales, and of its variance, where that of the data is 1. Without them a trend goes
on for ever: what is foretold beyond all that was trained is then as good as it is sure."""
_STARTS = 1
_FOLDS = 5
_OUTSIDE = 0.05
"""Chance that not all of the runs that confirm lie within the interval."""


@dataclass(frozen=True)
class Curve:
    """One training: what it had read at each evaluation, and the objective there."""

    read: Array
    """Of all tokens of the training the share read so far: [points, stages x sources]."""
    values: Array
    """Nats a token, [points]."""


@dataclass(frozen=True)
class Forecast:
    """The objective at the end of a training with other seeds, and the 95% interval of all that confirm it."""

    value: float
    low: float
    high: float


def features(read: Array) -> Array:
    """Return how much a model has seen, as it is felt: [..., stages x sources]."""
    return np.asarray(np.log1p(read / SCALE))


class Regression:
    """The objective as a function of what was read."""

    def __init__(self, curves: Sequence[Curve], seed: int = 0) -> None:
        """Fit to all points of some trainings, of which there must be three at least."""
        self._process = _fitted(curves, _kernel(curves[0].read.shape[1]), _STARTS, seed)
        self.errors = self._left_out(curves)
        self.widening = max(1.0, float(np.sqrt(np.mean(self.errors**2))))
        """By what the process' own standard deviations are multiplied."""

    def _left_out(self, curves: Sequence[Curve]) -> Array:
        """Return each run's error at its end, in standard deviations, foretold by a fit that has not seen it: [runs].

        With the hyperparameters of all runs, too, errors would be too small: there are about as many of these as runs.
        """
        errors = np.empty(len(curves))
        for fold in range(min(_FOLDS, len(curves))):
            left = range(fold, len(curves), _FOLDS)
            kept = [curve for number, curve in enumerate(curves) if number not in left]
            ends = np.stack([curves[number].read[-1] for number in left])
            mean, deviation = _foretold(_fitted(kept, self._process.kernel_, 0, 0), ends)
            errors[left] = (np.array([curves[number].values[-1] for number in left]) - mean) / deviation
        return errors

    def at(self, read: Array) -> tuple[Array, Array]:
        """Return the objective's mean and standard deviation after what new runs have read: [points] each."""
        mean, deviation = _foretold(self._process, read)
        return mean, deviation * self.widening

    def forecast(self, read: Array, runs: int = 1) -> Forecast:
        """Return the objective at one point, [stages x sources], with an interval for so many runs.

        By Student's t, as the widening is known from no more errors than there are runs.
        """
        [mean], [deviation] = self.at(read[None])
        half = stdtrit(len(self.errors), 1 - _OUTSIDE / 2 / runs) * deviation
        return Forecast(float(mean), float(mean - half), float(mean + half))


def _kernel(width: int) -> Kernel:
    """Return what is to be fitted. The run is one feature more: what all share does not see it, what is a run's own
    sees nothing else."""
    shared = RBF(np.append(np.full(width, 2.0), _FAR), np.array([_LENGTHS] * width + [(_FAR, _FAR * 1.0001)]))
    own = RBF(np.append(np.full(width, _FAR), _NEAR), "fixed")
    return (
        ConstantKernel(1.0, _HEIGHTS) * shared
        + ConstantKernel(1e-2, (1e-5, 1.0)) * own
        + WhiteKernel(1e-3, (1e-7, 1.0))
    )


def _fitted(curves: Sequence[Curve], kernel: Kernel, starts: int, seed: int) -> GaussianProcessRegressor:
    runs = np.concatenate([np.full(len(curve.values), float(number)) for number, curve in enumerate(curves)])
    read = features(np.concatenate([curve.read for curve in curves]))
    process = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=starts, random_state=seed)
    # One thread: the sums, and so what is found, are then the same on every machine with these libraries.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(np.column_stack([read, runs]), np.concatenate([curve.values for curve in curves]))
    return process


def _foretold(process: GaussianProcessRegressor, read: Array) -> tuple[Array, Array]:
    """Return mean and standard deviation of runs that are none of those that were trained."""
    with threadpool_limits(1):
        mean, deviation = process.predict(np.column_stack([features(read), np.full(len(read), -1.0)]), return_std=True)
    return mean, deviation
