"""An ablation of mixtures: a swarm, the curriculum that it foretells as the best, and trainings that test that."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from arctic_ablation.ranking import Rank, objective, ranking
from arctic_ablation.study import Found, Run, Step, TooFew, make_run, reached
from arctic_ablation.swarm.draws import BY_HAND, FORETOLD, PROPORTIONAL, Space, Weights, rounded
from arctic_ablation.swarm.regression import Array, Curve, Forecast, Regression
from arctic_ablation.variants import Variant, total_tokens
from arctic_api.ablation import ArcticAblationSpec, MixtureSearch

CANDIDATES, ROUNDS, KEPT = 4000, 6, 40
"""Mixtures to choose from, how often the best of them are varied, and how many these are."""
CAUTION = 1.0
"""Standard deviations that are added to what is foretold, for the choice alone: what is not known is no hope."""
EARLIEST = 0.2
"""Share of a run before which its curve says little of its end."""
SHIFT = 0.25
"""How far a stage's mixture is moved towards a source to see what that does."""
TWINS = 2
"""Trainings of the second half with the very mixtures that the first half foretells as the best."""
FEWEST = 3
"""Trainings from which anything is foretold."""

Swarm = list[tuple[Run, Weights]]
"""Trainings and their mixtures."""


@dataclass(frozen=True)
class Effect:
    """What more of a source in a stage does to the objective, all else as in the proportional mixture."""

    stage: str
    source: str
    change: float
    """Nats a token by which the objective changes where the stage's mixture goes a quarter of the way to the source."""
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


@dataclass(frozen=True)
class SwarmStudy:
    """A search for the best mixture of each stage.

    Args:
        name: of the ablation.
        spec: its specification, with `mixture`.
    """

    name: str
    spec: ArcticAblationSpec

    @property
    def _search(self) -> MixtureSearch:
        assert self.spec.mixture is not None
        return self.spec.mixture

    @cached_property
    def space(self) -> Space:
        """Stages and sources."""
        return Space(self._search, self.spec.training.wire())

    @cached_property
    def first(self) -> Swarm:
        """The first half of the swarm: each training with a seed of its own, and its mixtures."""
        space, seed = self.space, self.spec.training.seed
        known = [(BY_HAND, space.by_hand()), (PROPORTIONAL, space.proportional())]
        drawn = space.drawn(self._search.runs - self._search.runs // 2 - len(known), seed)
        named = [*known, *((f"drawn {number}", weights) for number, weights in enumerate(drawn, 1))]
        return self._swarm(named, seed)

    def swarm(self, found: Mapping[str, Found]) -> Swarm:
        """Return the swarm as far as it is known: its second half is drawn around what the first foretells.

        There the answer will be. The best of many forecasts is too good a one, the more so the further it lies from
        all that was trained; two seeds of that one itself say how much is chance there.
        """
        if _unfinished([run for run, _ in self.first], found):
            return self.first
        best = self._outlook(self.first, found).weights
        seed, count = self.spec.training.seed, self._search.runs // 2
        near = self.space.near(best, count - TWINS, seed)
        named = [(f"near {number}", weights) for number, weights in enumerate([best] * TWINS + near, 1)]
        return [*self.first, *self._swarm(named, seed + len(self.first))]

    def _swarm(self, named: Iterable[tuple[str, Weights]], seed: int) -> Swarm:
        return [(self._run(name, weights, seed + place), weights) for place, (name, weights) in enumerate(named)]

    def _run(self, name: str, weights: Weights, seed: int) -> Run:
        variant = Variant(name) if name == BY_HAND else self.space.variant(name, weights)
        return make_run(self.name, self.spec, variant, seed, self.space.training)

    def steps(self, found: Mapping[str, Found]) -> list[Step]:
        """Return what may run now: the swarm, then what is put to the test."""
        waiting = _unfinished([run for run, _ in self.swarm(found)], found)
        if waiting:
            return waiting
        return _unfinished([run for runs in self.tests(found).values() for run in runs], found)

    def is_foretold(self, found: Mapping[str, Found]) -> bool:
        """Whether the swarm is done; runs that failed are left out of what it says."""
        return not _unfinished([run for run, _ in self.swarm(found)], found)

    def tests(self, found: Mapping[str, Found]) -> dict[str, list[Run]]:
        """Return the trainings that put the outlook to the test, with seeds that the swarm has not seen."""
        space = self.space
        weights = {
            FORETOLD: self.outlook(found).weights,
            BY_HAND: space.by_hand(),
            PROPORTIONAL: space.proportional(),
        }
        first = self.spec.training.seed + self._search.runs
        return {
            name: [self._run(name, each, first + seed) for seed in range(self._search.confirm)]
            for name, each in weights.items()
        }

    def outlook(self, found: Mapping[str, Found]) -> Outlook:
        """Return what the swarm says, all of its trainings done; `TooFew` where not enough of them were judged."""
        return self._outlook(self.swarm(found), found)

    def _outlook(self, swarm: Swarm, found: Mapping[str, Found]) -> Outlook:
        whole = [(weights, found[run.name]) for run, weights in swarm if found[run.name].at(run.total)]
        if len(whole) < FEWEST:
            raise TooFew(
                f"{len(whole)} trainings of the swarm came to their end, and it takes {FEWEST} at least: see "
                "the logs of the others"
            )
        curves = [self._curve(weights, each) for weights, each in whole]
        key = tuple(curve.values.tobytes() for curve in curves)
        if key not in self._outlooks:
            self._outlooks[key] = self._foretell(curves)
        return self._outlooks[key]

    @cached_property
    def _outlooks(self) -> dict[tuple[bytes, ...], Outlook]:
        return {}

    def _foretell(self, curves: Sequence[Curve]) -> Outlook:
        regression = Regression(curves)
        best = self._best(regression)
        weights = {FORETOLD: best, BY_HAND: self.space.by_hand(), PROPORTIONAL: self.space.proportional()}
        confirm = self._search.confirm
        forecasts = {name: regression.forecast(self._read(each), confirm) for name, each in weights.items()}
        errors = [float(error) for error in regression.errors]
        return Outlook(best, forecasts, errors, regression.widening, self._effects(regression))

    def _curve(self, weights: Weights, found: Found) -> Curve:
        total = total_tokens(self.space.training)
        points = [point for point in found.points if point.tokens >= EARLIEST * total]
        read = np.stack([self._read(weights, point.tokens / total) for point in points])
        return Curve(read, np.array([objective(self.spec.objective, point.figures) for point in points]))

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
                found.append(Effect(stage, source, float(mean - start), float(deviation)))
        return found

    def ranks(self, found: Mapping[str, Found]) -> list[Rank]:
        """Return what was put to the test, the best first; before that the swarm's own runs."""
        total = total_tokens(self.space.training)
        if self.is_foretold(found):
            tested = {name: reached(self.spec, runs, total, found) for name, runs in self.tests(found).items()}
            if all(tested.values()):
                return ranking({name: (total, values) for name, values in tested.items()})
        each = {run.variant: reached(self.spec, [run], total, found) for run, _ in self.swarm(found)}
        return ranking({name: (total, values) for name, values in each.items() if values})

    def all_runs(self, found: Mapping[str, Found]) -> list[Run]:
        """Return the swarm, and what is put to the test once that is known."""
        swarm = [run for run, _ in self.swarm(found)]
        if not self.is_foretold(found):
            return swarm
        return swarm + [run for runs in self.tests(found).values() for run in runs]

    def grid_tokens(self) -> int:
        """Return the tokens of all trainings, three curricula of them to be put to the test."""
        return total_tokens(self.space.training) * (self._search.runs + 3 * self._search.confirm)


def _unfinished(runs: Sequence[Run], found: Mapping[str, Found]) -> list[Step]:
    known = {run.name: found.get(run.name, Found()) for run in runs}
    return [
        Step(run, run.total) for run in runs if not known[run.name].failed and known[run.name].at(run.total) is None
    ]
