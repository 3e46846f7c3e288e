"""An ablation of mixtures: a swarm, the curriculum that it foretells as the best, and trainings that test that.

What a swarm foretells takes scikit-learn, time and memory. Where the study is carried out by a process that has none of
these, somebody else foretells (`foretell`), and the study is told the curriculum alone.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from arctic_ablation.ranking import Rank, ranking
from arctic_ablation.study import Found, Run, Step, make_run, reached
from arctic_ablation.swarm.draws import BY_HAND, FORETOLD, PROPORTIONAL, Space, Weights
from arctic_ablation.variants import Variant, total_tokens
from arctic_api.ablation import ArcticAblationSpec, MixtureSearch, SwarmPart

if TYPE_CHECKING:
    from arctic_ablation.swarm.foretelling import Outlook

TWINS = 2
"""Trainings of the second half with the very mixtures that the first half foretells as the best."""
TESTED = (FORETOLD, BY_HAND, PROPORTIONAL)
"""Curricula that are put to the test."""

Swarm = list[tuple[Run, Weights]]
"""Trainings and their mixtures."""


@dataclass(frozen=True)
class SwarmStudy:
    """A search for the best mixture of each stage.

    Args:
        name: of the ablation.
        spec: its specification, with `mixture`.
        told: the best curriculum by part of the swarm, as far as others have foretold it; None where that is done here,
            once it is asked for.
    """

    name: str
    spec: ArcticAblationSpec
    told: dict[SwarmPart, Weights] | None = None
    _outlooks: dict[SwarmPart, "Outlook"] = field(default_factory=dict, init=False, repr=False)
    # Of the best curriculum by a part of the swarm: making a training goes through all of its rules.
    _second: dict[bytes, Swarm] = field(default_factory=dict, init=False, repr=False)
    _tests: dict[bytes, dict[str, list[Run]]] = field(default_factory=dict, init=False, repr=False)

    def hear(self, written: Mapping[SwarmPart, Mapping[str, str]]) -> None:
        """Take what others have foretold, as `Space.written` writes it; what is none of its mixtures is left out."""
        read = {part: self.space.read(mixtures) for part, mixtures in written.items()}
        assert self.told is not None, "it foretells by itself"
        self.told.clear()
        self.told.update({part: weights for part, weights in read.items() if weights is not None})

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

    @cached_property
    def digest(self) -> str:
        """Eight digits that depend on all that a part of the swarm foretells something from."""
        names = [*(run.name for run, _ in self.first), str(self._search.runs), str(self._search.confirm)]
        return hashlib.sha256(" ".join(names).encode()).hexdigest()[:8]

    def swarm(self, found: Mapping[str, Found]) -> Swarm:
        """Return the swarm as far as it is known: its second half is drawn around what the first foretells.

        There the answer will be. The best of many forecasts is too good a one, the more so the further it lies from
        all that was trained; two seeds of that one itself say how much is chance there.
        """
        if _unfinished(self.first, found) or (best := self._best("half", found)) is None:
            return self.first
        key = best.tobytes()
        if key not in self._second:
            seed, count = self.spec.training.seed, self._search.runs // 2
            near = self.space.near(best, count - TWINS, seed)
            named = [(f"near {number}", weights) for number, weights in enumerate([best] * TWINS + near, 1)]
            self._second[key] = self._swarm(named, seed + len(self.first))
        return [*self.first, *self._second[key]]

    def _best(self, part: SwarmPart, found: Mapping[str, Found]) -> Weights | None:
        return self.foretell(part, found).weights if self.told is None else self.told.get(part)

    def _swarm(self, named: Iterable[tuple[str, Weights]], seed: int) -> Swarm:
        return [(self._run(name, weights, seed + place), weights) for place, (name, weights) in enumerate(named)]

    def _run(self, name: str, weights: Weights, seed: int) -> Run:
        variant = Variant(name) if name == BY_HAND else self.space.variant(name, weights)
        return make_run(self.name, self.spec, variant, seed, self.space.training)

    def steps(self, found: Mapping[str, Found]) -> list[Step]:
        """Return what may run now: the swarm, then what is put to the test."""
        waiting = _unfinished(self.swarm(found), found)
        if waiting or not self.is_foretold(found):
            return waiting
        return [step for runs in self.tests(found).values() for step in _steps(runs, found)]

    def due(self, found: Mapping[str, Found]) -> SwarmPart | None:
        """Return the part of the swarm that is done and of which it is yet to be told what it foretells, if any.

        Runs that failed are left out of what it says.
        """
        if _unfinished(self.swarm(found), found):
            return None
        parts: Sequence[SwarmPart] = ("half", "whole")
        return next((part for part in parts if self._best(part, found) is None), None)

    def is_foretold(self, found: Mapping[str, Found]) -> bool:
        """Whether the swarm is done, and it is known what it foretells."""
        return not _unfinished(self.swarm(found), found) and self.due(found) is None

    def tests(self, found: Mapping[str, Found]) -> dict[str, list[Run]]:
        """Return the trainings that put what is foretold to the test, with seeds that the swarm has not seen."""
        best = self._best("whole", found)
        assert best is not None, "it is asked only for what is foretold"
        weights = dict(zip(TESTED, (best, self.space.by_hand(), self.space.proportional()), strict=True))
        first, key = self.spec.training.seed + self._search.runs, best.tobytes()
        if key not in self._tests:
            self._tests[key] = {
                name: [self._run(name, each, first + seed) for seed in range(self._search.confirm)]
                for name, each in weights.items()
            }
        return self._tests[key]

    def foretell(self, part: SwarmPart, found: Mapping[str, Found]) -> "Outlook":
        """Return what a part of the swarm says, all of its trainings done; `TooFew` where too few were judged."""
        if part not in self._outlooks:
            from arctic_ablation.swarm.foretelling import foretell  # which needs scikit-learn

            swarm = self.first if part == "half" else self.swarm(found)
            self._outlooks[part] = foretell(self.spec, self.space, swarm, found)
        return self._outlooks[part]

    def ranks(self, found: Mapping[str, Found]) -> list[Rank]:
        """Return what was put to the test, the best first; before that the swarm's own runs."""
        total = total_tokens(self.space.training)
        if self.is_foretold(found):
            tested = {name: reached(self.spec, runs, total, found) for name, runs in self.tests(found).items()}
            if all(tested.values()):
                return ranking(self.spec.objective, {name: (total, values) for name, values in tested.items()})
        each = {run.variant: reached(self.spec, [run], total, found) for run, _ in self.swarm(found)}
        return ranking(self.spec.objective, {name: (total, values) for name, values in each.items() if values})

    def all_runs(self, found: Mapping[str, Found]) -> list[Run]:
        """Return the swarm, and what is put to the test once that is known."""
        swarm = [run for run, _ in self.swarm(found)]
        if not self.is_foretold(found):
            return swarm
        return swarm + [run for runs in self.tests(found).values() for run in runs]

    def planned(self) -> int:
        """Return the number of trainings: the swarm, and three curricula that are put to the test."""
        return self._search.runs + len(TESTED) * self._search.confirm

    def grid_tokens(self) -> int:
        """Return the tokens of all trainings."""
        return total_tokens(self.space.training) * self.planned()


def _unfinished(swarm: Swarm, found: Mapping[str, Found]) -> list[Step]:
    return _steps([run for run, _ in swarm], found)


def _steps(runs: Sequence[Run], found: Mapping[str, Found]) -> list[Step]:
    """Return what is left of some trainings."""
    known = {run.name: found.get(run.name, Found()) for run in runs}
    return [
        Step(run, run.total) for run in runs if not known[run.name].failed and known[run.name].at(run.total) is None
    ]
