"""The tokens of a step: a function of (seed, stage, tokens consumed) and of nothing else."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from arctic_workers.training.curriculum import Curriculum, StagePlan
from arctic_workers.training.data.mixture import Counts, Mixture, key, permute
from arctic_workers.training.data.streams import Stream
from arctic_workers.training.errors import Refused

Batch = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """One sequence of a step: the n-th that the run takes from a source, at this stage's length."""

    source: str
    number: int


class StageDraws:
    """Which sequences each step of a stage has. Pure.

    Args:
        plan: the stage.
        seed: of the run.
        taken: tokens that the stages before this one took from each source: a source is gone on with, not begun again.
    """

    def __init__(self, plan: StagePlan, seed: int, taken: Mapping[str, int]) -> None:
        self.plan = plan
        self._sources = list(plan.weights)
        self._mixture = Mixture(list(plan.weights.values()), plan.sequences_per_step, key(seed, plan.name) % 2**32)
        self._seed = seed
        length = plan.spec.sequence_length
        self._first = np.array([-(-taken.get(name, 0) // length) for name in self._sources], np.int64)

    def step(self, step: int) -> list[Draw]:
        """Return the draws of the stage's step `step` (from zero) in the order in which ranks share them out."""
        numbers: Counts = self._first + self._mixture.drawn_before(step)
        counts = self._mixture.counts(step)
        draws = [Draw(name, int(numbers[i]) + j) for i, name in enumerate(self._sources) for j in range(int(counts[i]))]
        shuffled = np.random.default_rng(key(self._seed, self.plan.name, step)).permutation(len(draws))
        return [draws[i] for i in shuffled]

    @cached_property
    def taken(self) -> dict[str, int]:
        """Tokens that the whole stage takes from each source."""
        drawn = self._mixture.drawn_before(self.plan.steps) * self.plan.spec.sequence_length
        return {name: int(tokens) for name, tokens in zip(self._sources, drawn, strict=True)}


class TrainingData:
    """The sequences of a run.

    Args:
        curriculum: the stages.
        streams: token streams by source.
        seed: of the run.
    """

    def __init__(self, curriculum: Curriculum, streams: Mapping[str, Stream], seed: int) -> None:
        self._streams = streams
        self._seed = seed
        self._stages: list[StageDraws] = []
        taken: dict[str, int] = {}
        for plan in curriculum.stages:
            for name in plan.weights:
                if plan.spec.mixture[name] and name not in streams:
                    raise Refused("SourceEmpty", f"stage {plan.name}: there are no tokens of source {name}")
            draws = StageDraws(plan, seed, taken)
            self._stages.append(draws)
            taken = {name: taken.get(name, 0) + draws.taken.get(name, 0) for name in taken.keys() | draws.taken.keys()}

    def step(self, stage: StagePlan, step: int) -> list[Draw]:
        """Return all sequences of the run's step `step`, which is one of `stage`."""
        return self._stages[stage.index].step(step - stage.first_step)

    def tokens(self, draw: Draw, length: int) -> Batch:
        """Return the tokens of a draw and the one after them: [length + 1].

        Each time that a source has been used up, its windows come in a new order.
        """
        stream = self._streams[draw.source]
        windows = stream.windows(length)
        epoch, index = divmod(draw.number, windows)
        return stream.window(permute(index, windows, key(self._seed, draw.source, length, epoch)), length)

    def micro_batches(self, stage: StagePlan, step: int, rank: int, ranks: int, size: int) -> list[Batch]:
        """Return what rank `rank` of `ranks` computes in a step: arrays of [size, sequence length + 1].

        Together the ranks have all sequences of the step once; `sequences_per_step` is a multiple of `ranks` x `size`.
        """
        length = stage.spec.sequence_length
        draws = self.step(stage, step)
        return [
            np.stack([self.tokens(draw, length) for draw in draws[start : start + size]])
            for start in range(rank * size, len(draws), ranks * size)
        ]


def held_out_windows(streams: Mapping[str, Stream], category: str, length: int, most: int) -> list[Batch]:
    """Return at most `most` sequences of held-out text of a category, spread over its streams: [length + 1] each."""
    chosen = [streams[name] for name in sorted(streams) if streams[name].category == category]
    places = [(stream, index) for stream in chosen for index in range(stream.windows(length))]
    count = min(most, len(places))
    return [stream.window(index, length) for stream, index in (places[i * len(places) // count] for i in range(count))]


def main_category(stage: StagePlan, categories: Mapping[str, str]) -> str:
    """Return the category whose sources have the most weight together, the first in the alphabet among equals."""
    totals: dict[str, float] = defaultdict(float)
    for name, weight in stage.weights.items():
        totals[categories[name]] += weight
    return max(sorted(totals), key=lambda category: totals[category])
