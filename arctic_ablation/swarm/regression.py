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
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from threadpoolctl import threadpool_limits

Array = npt.NDArray[np.float64]

SCALE = 0.03
"""Share of all tokens from which on more of a source is felt by its logarithm, and below which in proportion."""
_FAR, _NEAR = 1e6, 1e-3
"""Length scales that make a feature count for nothing, and one by which only equals are alike."""
_STARTS = 1
_NORMAL_975 = 1.96


@dataclass(frozen=True)
class Curve:
    """One training: what it had read at each evaluation, and the objective there."""

    read: Array
    """Of all tokens of the training the share read so far: [points, stages x sources]."""
    values: Array
    """Nats a token, [points]."""


@dataclass(frozen=True)
class Forecast:
    """The objective at the end of a training with other seeds, and the 95% interval of one such training."""

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
        self._runs = np.concatenate([np.full(len(curve.values), float(number)) for number, curve in enumerate(curves)])
        self._ends = np.cumsum([len(curve.values) for curve in curves]) - 1
        self._values = np.concatenate([curve.values for curve in curves])
        read = features(np.concatenate([curve.read for curve in curves]))
        width = read.shape[1]
        # The run is one feature more. What all share does not see it, what is a run's own sees nothing else.
        shared = RBF(np.append(np.full(width, 2.0), _FAR), np.array([(0.2, 100.0)] * width + [(_FAR, _FAR * 1.0001)]))
        own = RBF(np.append(np.full(width, _FAR), _NEAR), "fixed")
        kernel = (
            ConstantKernel(1.0, (1e-2, 1e4)) * shared
            + ConstantKernel(1e-3, (1e-7, 1.0)) * own
            + WhiteKernel(1e-3, (1e-7, 1.0))
        )
        self._process = GaussianProcessRegressor(
            kernel, normalize_y=True, n_restarts_optimizer=_STARTS, random_state=seed
        )
        # One thread: the sums, and so what is found, are then the same on every machine with these libraries.
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._process.fit(self._with_runs(read, self._runs), self._values)
        self.errors = self._left_out()
        self.widening = max(1.0, float(np.sqrt(np.mean(self.errors**2))))
        """By what the process' own standard deviations are multiplied."""

    @staticmethod
    def _with_runs(read: Array, runs: Array) -> Array:
        return np.column_stack([read, runs])

    def _left_out(self) -> Array:
        """Return each run's error at its end, foretold from all other runs, in standard deviations: [runs].

        By blocks of the inverse of the covariance (Rasmussen and Williams, section 5.4.2), hyperparameters kept.
        """
        process = self._process
        covariance = process.kernel_(process.X_train_)
        inverse = np.linalg.inv(covariance)
        weights = inverse @ process.y_train_
        found = []
        for number, end in enumerate(self._ends):
            block = np.flatnonzero(self._runs == number)
            spread = np.linalg.inv(inverse[np.ix_(block, block)])
            place = int(np.flatnonzero(block == end)[0])
            error = (spread @ weights[block])[place]
            found.append(error / np.sqrt(spread[place, place]))
        return np.array(found)

    def at(self, read: Array) -> tuple[Array, Array]:
        """Return the objective's mean and standard deviation after what new runs have read: [points] each."""
        with threadpool_limits(1):
            mean, deviation = self._process.predict(
                self._with_runs(features(read), np.full(len(read), -1.0)), return_std=True
            )
        return mean, deviation * self.widening

    def forecast(self, read: Array) -> Forecast:
        """Return the objective at one point: [stages x sources]."""
        [mean], [deviation] = self.at(read[None])
        half = _NORMAL_975 * deviation
        return Forecast(float(mean), float(mean - half), float(mean + half))
