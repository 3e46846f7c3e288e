"""The tokens of a step: a function of (seed, stage, tokens consumed or passed over) and of nothing else."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from arctic_workers.training.curriculum import Curriculum, StagePlan
from arctic_workers.training.data.mixture import Counts, Mixture, Ramp, key, permute
from arctic_workers.training.data.windows import MicroBatch, Stream, Window
from arctic_workers.training.errors import Refused


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
        self._mixture = _mixture_of(plan, key(seed, plan.name) % 2**32)
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

    def drawn_before(self, step: int) -> dict[str, int]:
        """Return how many sequences of each source the stage's first `step` steps have."""
        return dict(zip(self._sources, map(int, self._mixture.drawn_before(step)), strict=True))

    def taken(self, passed_over: int) -> dict[str, int]:
        """Return the tokens of each source that the whole stage reads, or else passes over: so many steps of them."""
        length = self.plan.spec.sequence_length
        return {name: drawn * length for name, drawn in self.drawn_before(self.plan.steps + passed_over).items()}


def _mixture_of(plan: StagePlan, offset: int) -> Mixture | Ramp:
    first, last = list(plan.weights.values()), list(plan.final_weights.values())
    if first == last:
        return Mixture(first, plan.sequences_per_step, offset)
    return Ramp(first, last, plan.sequences_per_step, plan.steps, offset)


class TrainingData:
    """The sequences of a run.

    Args:
        curriculum: the stages.
        streams: token streams by source.
        seed: of the run.
    """

    def __init__(self, curriculum: Curriculum, streams: Mapping[str, Stream], seed: int) -> None:
        for plan in curriculum.stages:
            for name in plan.weights:
                if plan.mean_weights[name] and name not in streams:
                    raise Refused("SourceEmpty", f"stage {plan.name}: there are no tokens of source {name}")
        self._plans = curriculum.stages
        self._streams = streams
        self._seed = seed
        self._passed_over: dict[str, int] = {}
        self._stages = self._draws()

    def _draws(self) -> list[StageDraws]:
        stages: list[StageDraws] = []
        taken: Counter[str] = Counter()
        for plan in self._plans:
            stages.append(StageDraws(plan, self._seed, taken.copy()))
            taken.update(stages[-1].taken(self._passed_over.get(plan.name, 0)))
        return stages

    def pass_over(self, steps: Mapping[str, int]) -> None:
        """Pass over so many steps' data of each stage, by its name, from now on; later stages go on behind them."""
        if self._passed_over != steps:
            self._passed_over = dict(steps)
            self._stages = self._draws()

    def step(self, stage: StagePlan, step: int) -> list[Draw]:
        """Return all sequences of the run's step `step`, which is one of `stage`."""
        return self._stages[stage.index].step(step - stage.first_step + self._passed_over.get(stage.name, 0))

    def epochs(self, step: int) -> dict[str, float]:
        """Return how often each source has been read after `step` steps of the run."""
        totals = dict.fromkeys(self._streams, 0.0)
        for stage in self._stages:
            length, done = stage.plan.spec.sequence_length, stage.plan.steps_done(step)
            for name, drawn in stage.drawn_before(done).items():
                if drawn:
                    totals[name] += drawn / self._streams[name].windows(length)
        return totals

    def window(self, draw: Draw, length: int) -> Window:
        """Return the sequence of a draw."""
        return self._streams[draw.source].window(self._index(draw, length), length)

    def _index(self, draw: Draw, length: int) -> int:
        """Return which window of its source a draw is: each time that all are used up, they come in a new order."""
        windows = self._streams[draw.source].windows(length)
        epoch, index = divmod(draw.number, windows)
        return permute(index, windows, key(self._seed, draw.source, length, epoch))

    def targets(self, stage: StagePlan, step: int) -> int:
        """Return how many tokens a step predicts, over all ranks: its loss is the mean over them."""
        length = stage.spec.sequence_length
        return sum(
            self._streams[draw.source].targets(self._index(draw, length), length) for draw in self.step(stage, step)
        )

    def micro_batches(self, stage: StagePlan, step: int, rank: int, ranks: int, size: int) -> list[MicroBatch]:
        """Return what rank `rank` of `ranks` computes in a step: `size` sequences each.

        Together the ranks have all sequences of the step once; `sequences_per_step` is a multiple of `ranks` x `size`.
        """
        length = stage.spec.sequence_length
        draws = self.step(stage, step)
        return [
            MicroBatch.of([self.window(draw, length) for draw in draws[start : start + size]])
            for start in range(rank * size, len(draws), ranks * size)
        ]

    def sources(self, stage: StagePlan, step: int, rank: int, ranks: int, size: int) -> list[list[str]]:
        """Return the source of each sequence of `micro_batches`."""
        draws = self.step(stage, step)
        return [
            [draw.source for draw in draws[start : start + size]]
            for start in range(rank * size, len(draws), ranks * size)
        ]


def held_out_windows(streams: Mapping[str, Stream], category: str, length: int, most: int) -> list[Window]:
    """Return at most `most` sequences of held-out text of a category that can be judged, spread over its streams."""
    chosen = [streams[name] for name in sorted(streams) if streams[name].category == category]
    places = [(stream, index) for stream in chosen for index in stream.judged(length)]
    count = min(most, len(places))
    return [stream.window(index, length) for stream, index in (places[i * len(places) // count] for i in range(count))]


def main_category(stage: StagePlan, categories: Mapping[str, str]) -> str:
    """Return the category whose sources have the most weight together, the first in the alphabet among equals."""
    totals: dict[str, float] = defaultdict(float)
    for name, weight in stage.mean_weights.items():
        totals[categories[name]] += weight
    return max(sorted(totals), key=lambda category: totals[category])
