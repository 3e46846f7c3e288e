"""What a swarm's finished trainings say: the curriculum that is foretold as the best, and what it will come to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from arctic_ablation.ranking import cost, objective
from arctic_ablation.study import Found, Run, TooFew
from arctic_ablation.swarm.draws import BY_HAND, FORETOLD, PROPORTIONAL, Space, Weights, rounded
from arctic_ablation.swarm.regression import Array, Curve, Forecast, Regression
from arctic_ablation.variants import total_tokens
from arctic_api.ablation import ArcticAblationSpec

CANDIDATES, ROUNDS, KEPT = 4000, 6, 40
"""Mixtures to choose from, how often the best of them are varied, and how many these are."""
CAUTION = 2.0
"""Standard deviations that are added to what is foretold, for the choice alone: what is not known is no hope."""
EARLIEST = 0.2
"""Share of a run before which its curve says little of its end."""
SHIFT = 0.25
"""How far a stage's mixture is moved towards a source to see what that does."""
FEWEST = 3
"""Trainings from which anything is foretold."""


@dataclass(frozen=True)
class Effect:
    """What more of a source in a stage does to the objective, all else as in the proportional mixture."""

    stage: str
    source: str
    change: float
    """By what the objective changes where the stage's mixture goes a quarter of the way to the source."""
    deviation: float


@dataclass(frozen=True)
class Outlook:
    """What a finished swarm says."""

    weights: Weights
    """The curriculum that is foretold as the best: [stages, sources]."""
    forecasts: Mapping[str, Forecast]
    """Of that one, the one by hand and the proportional one."""
    errors: Sequence[float]
    """Of each run of the swarm, foretold from the others, in standard deviations."""
    widening: float
    effects: Sequence[Effect]


def foretell(
    spec: ArcticAblationSpec, space: Space, swarm: Sequence[tuple[Run, Weights]], found: Mapping[str, Found]
) -> Outlook:
    """Return what a swarm says, all of whose trainings have ended; `TooFew` where not enough of them were judged.

    Args:
        spec: the ablation's specification, with `mixture`.
        space: its stages and sources.
        swarm: the trainings, and their mixtures.
        found: what is known of them.
    """
    whole = [(weights, found[run.name]) for run, weights in swarm if found[run.name].at(run.total)]
    if len(whole) < FEWEST:
        raise TooFew(
            f"{len(whole)} trainings of the swarm came to their end, and it takes {FEWEST} at least: see "
            "the logs of the others"
        )
    ends = {objective(spec.objective, each.points[-1].figures) for _, each in whole}
    if len(ends) == 1:
        raise TooFew(
            f"all {len(whole)} trainings of the swarm came to the same end, {ends.pop():g}: nothing follows from that, "
            "so train more tokens, or write another objective"
        )
    return _Foretelling(spec, space).from_curves(whole)


@dataclass(frozen=True)
class _Foretelling:
    spec: ArcticAblationSpec
    space: Space

    def _cost(self, value: float) -> float:
        """Return a value so that less is better, as the regression has them, and back."""
        return cost(self.spec.objective, value)

    def from_curves(self, whole: Sequence[tuple[Weights, Found]]) -> Outlook:
        assert self.spec.mixture is not None
        regression = Regression([self._curve(weights, each) for weights, each in whole])
        best, confirm = self._best(regression), self.spec.mixture.confirm
        weights = {FORETOLD: best, BY_HAND: self.space.by_hand(), PROPORTIONAL: self.space.proportional()}
        forecasts = {name: self._told(regression.forecast(self._read(each), confirm)) for name, each in weights.items()}
        errors = [float(error) for error in regression.errors]
        return Outlook(best, forecasts, errors, regression.widening, self._effects(regression))

    def _told(self, forecast: Forecast) -> Forecast:
        low, high = sorted((self._cost(forecast.low), self._cost(forecast.high)))
        return Forecast(self._cost(forecast.value), low, high)

    def _curve(self, weights: Weights, found: Found) -> Curve:
        total = total_tokens(self.space.training)
        points = [point for point in found.points if point.tokens >= EARLIEST * total]
        read = np.stack([self._read(weights, point.tokens / total) for point in points])
        return Curve(read, np.array([self._cost(objective(self.spec.objective, point.figures)) for point in points]))

    def _read(self, weights: Weights, share: float = 1.0) -> Array:
        """Return what a run has read after a share of its tokens: [stages x sources], of all of its tokens."""
        ends = np.cumsum(self.space.shares)
        done = np.clip(share - (ends - self.space.shares), 0.0, self.space.shares)
        return np.asarray((done[:, None] * weights).ravel())

    def _best(self, regression: Regression) -> Weights:
        """Return the mixtures of which the least is foretold, with caution: drawn, then the best of them varied."""
        generator = np.random.default_rng(self.spec.training.seed)
        crowd = self.space.candidates(CANDIDATES, self.spec.training.seed)
        for number in range(ROUNDS):
            mean, deviation = regression.at(np.stack([self._read(weights) for weights in crowd]))
            kept = crowd[np.argsort(mean + CAUTION * deviation, kind="stable")[:KEPT]]
            if number == ROUNDS - 1:
                break
            mixed = generator.dirichlet(
                np.ones(len(self.space.sources)), (CANDIDATES // ROUNDS, len(self.space.stages))
            )
            steps = generator.uniform(0, 0.5 ** (number + 1), (len(mixed), len(self.space.stages), 1))
            parents = kept[generator.integers(len(kept), size=len(mixed))]
            crowd = np.concatenate([kept, parents * (1 - steps) + mixed * steps])
        return rounded(kept[0])

    def _effects(self, regression: Regression) -> list[Effect]:
        middle = self.space.proportional()
        found = []
        [start], _ = regression.at(self._read(middle)[None])
        for row, stage in enumerate(self.space.stages):
            for column, source in enumerate(self.space.sources):
                moved = middle.copy()
                moved[row] *= 1 - SHIFT
                moved[row, column] += SHIFT
                [mean], [deviation] = regression.at(self._read(moved)[None])
                found.append(Effect(stage, source, self._cost(float(mean - start)), float(deviation)))
        return found
