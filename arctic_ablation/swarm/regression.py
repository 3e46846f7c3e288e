"""What a loss becomes under mixtures that were not trained: a regression over whole loss curves.

A point of a curve is what a training had read of each source in each stage until then, and the objective there, as it
stands among all runs at that moment: all losses fall in the same way, by the schedule of the learning rate above all,
and that fall says nothing of mixtures. One function of mixture and moment gives all points of all runs; that points of
one run err together, by its seed, is a part of the model of its own. The function is a Gaussian process (Rasmussen and
Williams, 2006): its uncertainty grows away from what was trained. All sources and stages share one length: with one
each, which are as many as a swarm has runs, such a process follows chance and is sure of it. It is put to the test
before it is believed: each run is foretold from all others, and where it errs by more than it says, all that it says is
made wider by that much.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
_LENGTHS, _MOMENTS, _HEIGHTS = (0.3, 20.0), (0.05, 5.0), (0.1, 10.0)
"""Bounds of the length scales of mixtures and of moments, and of the function's variance, where that of the data is 1.
Without them a trend goes on for ever: what is foretold beyond all that was trained is then as good as it is sure."""
_OWN, _NOISE = (5e-3, 1.0), (1e-3, 1.0)
"""Bounds of the variances that are a run's own and a point's own."""
_STARTS = 1
_FOLDS = 5
_POINTS = 1024
"""Most points of all runs together: what it takes grows with their third power."""
_OUTSIDE = 0.05
"""Chance that not all of the runs that confirm lie within the interval."""
_TINY = 1e-6


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
        """Fit to points of some trainings, of which there must be three at least, each with the end."""
        curves = _thinned(curves)
        self._process = _Process(curves, _kernel(curves[0].read.shape[1]), _STARTS, seed)
        self.errors = self._left_out(curves)
        self.widening = max(1.0, float(np.sqrt(np.mean(self.errors**2))))
        """By what the process' own standard deviations are multiplied."""

    def _left_out(self, curves: Sequence[Curve]) -> Array:
        """Return each run's error at its end, in standard deviations, foretold by a fit that has not seen it: [runs].

        With the hyperparameters of all runs, too, errors would be too small.
        """
        errors = np.empty(len(curves))
        for fold in range(min(_FOLDS, len(curves))):
            left = range(fold, len(curves), _FOLDS)
            kept = [curve for number, curve in enumerate(curves) if number not in left]
            ends = np.stack([curves[number].read[-1] for number in left])
            mean, deviation = _Process(kept, self._process.kernel, 0, 0).at(ends)
            errors[left] = (np.array([curves[number].values[-1] for number in left]) - mean) / deviation
        return errors

    def at(self, read: Array) -> tuple[Array, Array]:
        """Return the objective's mean and standard deviation where new runs end, after what they have read then.

        [points, stages x sources] gives [points] each.
        """
        mean, deviation = self._process.at(read)
        return mean, deviation * self.widening

    def forecast(self, read: Array, runs: int = 1) -> Forecast:
        """Return the objective at the end, after [stages x sources], with an interval for so many runs.

        By Student's t, as the widening is known from no more errors than there are runs.
        """
        [mean], [deviation] = self.at(read[None])
        half = stdtrit(len(self.errors), 1 - _OUTSIDE / 2 / runs) * deviation
        return Forecast(float(mean), float(mean - half), float(mean + half))


class _Process:
    """A Gaussian process over points of curves, each as it stands among all runs at its moment."""

    def __init__(self, curves: Sequence[Curve], kernel: Kernel, starts: int, seed: int) -> None:
        moments = [np.round(curve.read.sum(axis=1), 6) for curve in curves]
        values = np.concatenate([curve.values for curve in curves])
        places, where = np.unique(np.concatenate(moments), return_inverse=True)
        means = np.array([values[where == place].mean() for place in range(len(places))])
        deviations = np.array([values[where == place].std() for place in range(len(places))])
        self._mean, self._deviation = means[-1], max(deviations[-1], _TINY)
        runs = np.repeat(np.arange(len(curves), dtype=np.float64), [len(curve.values) for curve in curves])
        # A moment at which but one run was judged says nothing of how it stands among others.
        said = deviations[where] > 0
        points = _columns(np.concatenate([curve.read for curve in curves]), runs)[said]
        self._process = GaussianProcessRegressor(kernel, n_restarts_optimizer=starts, random_state=seed)
        # One thread: the sums, and so what is found, are then the same on every machine with these libraries.
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._process.fit(points, ((values - means[where]) / np.maximum(deviations[where], _TINY))[said])

    @property
    def kernel(self) -> Kernel:
        """What was fitted."""
        return self._process.kernel_

    def at(self, read: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation where runs end that are none of those that were trained."""
        with threadpool_limits(1):
            mean, deviation = self._process.predict(_columns(read, np.full(len(read), -1.0)), return_std=True)
        return mean * self._deviation + self._mean, deviation * self._deviation


def _columns(read: Array, runs: Array) -> Array:
    """Return what the kernel sees of points: [points, stages x sources + moment + run]."""
    return np.column_stack([features(read), read.sum(axis=1), runs])


class _Of(RBF):  # type: ignore[misc]  # scikit-learn has no types
    """A squared exponential of some columns, all with one length."""

    def __init__(
        self, first: int, end: int, length_scale: float = 1.0, length_scale_bounds: tuple[float, float] | str = "fixed"
    ) -> None:
        super().__init__(length_scale, length_scale_bounds)
        self.first, self.end = first, end

    def __call__(self, points: Array, others: Array | None = None, eval_gradient: bool = False) -> Any:
        """See the base."""
        columns = slice(self.first, self.end)
        return super().__call__(points[:, columns], None if others is None else others[:, columns], eval_gradient)


def _kernel(width: int) -> Kernel:
    """Return what is to be fitted, for so many columns of mixtures."""

    def moment() -> Kernel:
        return _Of(width, width + 1, 0.25, _MOMENTS)

    return (
        ConstantKernel(1.0, _HEIGHTS) * _Of(0, width, 2.0, _LENGTHS) * moment()
        + ConstantKernel(0.1, _OWN) * _Of(width + 1, width + 2, 1e-3) * moment()
        + WhiteKernel(0.02, _NOISE)
    )


def _thinned(curves: Sequence[Curve]) -> list[Curve]:
    """Return curves of which so many points are left, evenly and with the end, as a process has room for."""
    each = max(1, _POINTS // len(curves))
    chosen = [np.unique(np.linspace(n - 1, 0, min(each, n)).astype(int)) for n in (len(c.values) for c in curves)]
    return [Curve(curve.read[rows], curve.values[rows]) for curve, rows in zip(curves, chosen, strict=True)]
