"""An ablation of variants: which of its trainings may run now, given what those that there are have come to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from arctic_ablation.halving import climbs, rungs
from arctic_ablation.ranking import Rank, cost, objective, ranking
from arctic_ablation.variants import (
    Variant,
    VariantError,
    Wire,
    changed,
    digest,
    total_tokens,
    training_manifest,
    trains_adapter,
    trial,
    variants,
)
from arctic_api.ablation import ArcticAblationSpec
from arctic_api.common import parse_tokens
from arctic_api.verdict import field_problems, settle

_NO_RUNGS = (
    "it trains an adapter, so suites judge what it exports at its end, and at a rung there is nothing: leave halving "
    "out, or judge by perplexity"
)


class TooFew(ValueError):  # noqa: N818 - names what is wrong
    """Not enough trainings came to their end for anything to be foretold; the message says how many it takes."""


@dataclass(frozen=True)
class Point:
    """What an evaluation of a training found."""

    tokens: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Found:
    """What is known of one training."""

    points: Sequence[Point] = ()
    failed: str = ""
    """Why it goes no further; empty for one that may."""

    @property
    def tokens(self) -> int:
        """Tokens at its last evaluation."""
        return self.points[-1].tokens if self.points else 0

    def at(self, tokens: int) -> Point | None:
        """Return the first evaluation with so many tokens or more, if it has come so far."""
        return next((point for point in self.points if point.tokens >= tokens), None)


@dataclass(frozen=True)
class Run:
    """One training of an ablation, as a whole."""

    name: str
    """Of the ArcticTraining."""
    variant: str
    seed: int
    training: Wire
    """Its specification, to its end."""

    @property
    def total(self) -> int:
        """Tokens of all of its stages."""
        return total_tokens(self.training)


@dataclass(frozen=True)
class Step:
    """A training, and how far it may go now."""

    run: Run
    tokens: int

    @property
    def specification(self) -> Wire:
        """Its specification, with the point at which it rests; none where it goes to its end."""
        if self.tokens >= self.run.total:
            return self.run.training
        return self.run.training | {"suspendAt": self.tokens}

    def cost(self, found: Mapping[str, Found]) -> int:
        """Return the tokens that it takes from where it is."""
        return max(0, min(self.tokens, self.run.total) - found.get(self.run.name, Found()).tokens)


class Study(Protocol):
    """What every kind of ablation can say."""

    @property
    def spec(self) -> ArcticAblationSpec:
        """Its specification."""
        ...

    def steps(self, found: Mapping[str, Found]) -> list[Step]:
        """Return what may run now, what is wanted most first; nothing once all is found."""
        ...

    def ranks(self, found: Mapping[str, Found]) -> list[Rank]:
        """Return the variants that were judged, the best first."""
        ...

    def all_runs(self, found: Mapping[str, Found]) -> list[Run]:
        """Return all trainings that are known by now."""
        ...

    def planned(self) -> int:
        """Return the number of trainings."""
        ...

    def grid_tokens(self) -> int:
        """Return the tokens of all trainings if none is stopped early."""
        ...


def name_of(ablation: str, spec: ArcticAblationSpec, training: Wire) -> str:
    """Return the name of a training: the same for the same training, so that nothing is trained twice."""
    return f"{ablation}-{digest(spec, training)}"


def make_run(ablation: str, spec: ArcticAblationSpec, variant: Variant, seed: int, base: Wire) -> Run:
    """Return one training of a variant; `VariantError` if a change has made it none."""
    manifest = training_manifest(ablation, changed(base, variant.changes))
    if problems := field_problems(manifest):
        raise VariantError(f"variant {variant.name}: " + "; ".join(map(str, problems)))
    training = settle(manifest)["spec"]  # a null within a value stands for a field that is left out
    if spec.halving and spec.objective.suites and trains_adapter(training):
        raise VariantError(f"variant {variant.name}: {_NO_RUNGS}")
    made = trial(spec, training, seed)
    return Run(name_of(ablation, spec, made), variant.name, seed, made)


def reached(spec: ArcticAblationSpec, runs: Sequence[Run], tokens: int, found: Mapping[str, Found]) -> list[float]:
    """Return the objective at a number of tokens, or a run's end, of each of some runs; [] unless all came there."""
    points = [found.get(run.name, Found()).at(min(tokens, run.total)) for run in runs]
    return [objective(spec.objective, point.figures) for point in points if point] if all(points) else []


@dataclass(frozen=True)
class VariantStudy:
    """A grid or a list of changes, with or without halving.

    Args:
        name: of the ablation.
        spec: its specification.
    """

    name: str
    spec: ArcticAblationSpec

    @cached_property
    def runs(self) -> dict[str, list[Run]]:
        """The trainings of each variant, one a seed; `VariantError` if one can't be made, or two are alike."""
        base = self.spec.training.wire()
        first = self.spec.training.seed
        made = {
            variant.name: [
                make_run(self.name, self.spec, variant, first + seed, base) for seed in range(self.spec.seeds)
            ]
            for variant in variants(self.spec)
        }
        seen: dict[str, str] = {}
        for name, runs in made.items():
            other = seen.setdefault(runs[0].name, name)
            if other != name:
                raise VariantError(
                    f"{other!r} and {name!r} are the same training: vary what is learnt, and not the seed"
                )
        return made

    @cached_property
    def rungs(self) -> tuple[int, ...]:
        """Tokens of each rung; one if nothing is stopped early."""
        total = max(run.total for runs in self.runs.values() for run in runs)
        halving = self.spec.halving
        return (total,) if halving is None else rungs(parse_tokens(halving.first), total, halving.factor)

    def steps(self, found: Mapping[str, Found]) -> list[Step]:
        """Return what may run now, what is wanted most first."""
        factor = self.spec.halving.factor if self.spec.halving else 2
        values = {name: self._values(name, found) for name in self.runs}
        alive = [name for name in self.runs if not self._failed(name, found)]
        return [
            Step(run, self.rungs[rung])
            for name, rung in climbs(alive, values, len(self.rungs), factor)
            for run in self.runs[name]
            if found.get(run.name, Found()).at(min(self.rungs[rung], run.total)) is None
        ]

    def _failed(self, variant: str, found: Mapping[str, Found]) -> bool:
        return any(found.get(run.name, Found()).failed for run in self.runs[variant])

    def _values(self, variant: str, found: Mapping[str, Found]) -> list[float]:
        """Return the mean objective, so that less is better, at each rung that all trainings of a variant came to."""
        values: list[float] = []
        for rung in self.rungs:
            there = reached(self.spec, self.runs[variant], rung, found)
            if not there:
                break
            values.append(cost(self.spec.objective, sum(there) / len(there)))
        return values

    def ranks(self, found: Mapping[str, Found]) -> list[Rank]:
        """Return the variants that were judged, those that came furthest first, of these the best first."""
        judged: dict[str, tuple[int, Sequence[float]]] = {}
        for name, runs in self.runs.items():
            for rung in self.rungs:
                if values := reached(self.spec, runs, rung, found):
                    judged[name] = (rung, values)
        return ranking(self.spec.objective, judged)

    def all_runs(self, found: Mapping[str, Found]) -> list[Run]:  # noqa: ARG002 - a swarm's depend on it
        """Return all trainings."""
        return [run for runs in self.runs.values() for run in runs]

    def planned(self) -> int:
        """Return the number of trainings."""
        return sum(map(len, self.runs.values()))

    def grid_tokens(self) -> int:
        """Return the tokens of all trainings if none is stopped early."""
        return sum(run.total for runs in self.runs.values() for run in runs)


def affordable(steps: Iterable[Step], found: Mapping[str, Found], budget: int | None, spent: int) -> list[Step]:
    """Return the first of some steps that a budget of tokens has room for, all if there is none.

    Args:
        steps: what may run, what is wanted most first.
        found: what is known of all trainings.
        budget: tokens that the ablation may take.
        spent: what it has taken, and what runs now is going to take.
    """
    chosen = []
    for step in steps:
        spent += step.cost(found)
        if budget is not None and spent > budget:
            break
        chosen.append(step)
    return chosen
