"""The curriculum as arithmetic: from a step to its stage, its tokens and its learning rate. Pure.

Rounding of budgets: a stage takes the fewest whole steps that spend its budget, so that every step of a run has
`tokensPerStep` tokens whatever the number of ranks; it overspends by less than one step.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from arctic_api.common import parse_tokens
from arctic_api.training import ArcticTrainingSpec, LearningRate, Stage

WSD_DECAY = 0.1
"""Share of a stage over which the `wsd` schedule decays."""


def learning_rate(rate: LearningRate, tokens: int, total: int, start: float = 0.0) -> float:
    """Return the learning rate of the step that ends `tokens` tokens into a stage of `total` tokens.

    Linear warm-up from `start` to `peak` over `warmup_tokens`; then `constant`, or `cosine` (Loshchilov and Hutter,
    2017) or `wsd` (warm-up, stable, decay: Hu et al., 2024) down to `final`, which the stage's last step has exactly. A
    warm-up that takes the whole stage leaves nothing to decay: the last step has what it has come to, at most `peak`.
    """
    warmup = parse_tokens(rate.warmup_tokens)
    if tokens < warmup:
        return start + (rate.peak - start) * tokens / warmup
    if rate.schedule == "constant":
        return rate.peak
    decay_start = warmup if rate.schedule == "cosine" else max(warmup, math.floor(total * (1 - WSD_DECAY)))
    done = min(1.0, max(0, tokens - decay_start) / max(1, total - decay_start))
    kept = (1 + math.cos(math.pi * done)) / 2 if rate.schedule == "cosine" else 1 - done
    return rate.final + (rate.peak - rate.final) * kept


@dataclass(frozen=True)
class StagePlan:
    """One stage in whole steps."""

    index: int
    spec: Stage
    first_step: int
    """Steps of the run before this stage."""
    steps: int
    tokens_per_step: int
    start_rate: float = 0.0
    """Learning rate that the stage before it ended with: from there it warms up."""

    @property
    def name(self) -> str:
        """Name of the stage."""
        return self.spec.name

    @property
    def end_step(self) -> int:
        """Steps of the run once this stage is done."""
        return self.first_step + self.steps

    @property
    def sequences_per_step(self) -> int:
        """Sequences of one step, over all ranks."""
        return self.tokens_per_step // self.spec.sequence_length

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each source, summing to 1, by name in alphabetical order."""
        return _normalised(self.spec.mixture, self.spec.mixture)

    @property
    def final_weights(self) -> dict[str, float]:
        """The same at the stage's end: weights change evenly over its steps."""
        return _normalised(self.spec.final_mixture or self.spec.mixture, self.spec.mixture)

    @property
    def mean_weights(self) -> dict[str, float]:
        """The same over the whole stage."""
        final = self.final_weights
        return {name: (weight + final[name]) / 2 for name, weight in self.weights.items()}

    def steps_done(self, step: int) -> int:
        """Return the steps of this stage that are done after `step` steps of the run."""
        return min(max(step - self.first_step, 0), self.steps)

    def tokens_done(self, step: int) -> int:
        """Return the tokens of this stage that are spent after `step` steps of the run."""
        return self.steps_done(step) * self.tokens_per_step

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the run's step `step` (counted from zero)."""
        return learning_rate(
            self.spec.learning_rate, self.tokens_done(step + 1), self.steps * self.tokens_per_step, self.start_rate
        )


def _normalised(mixture: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """Return the weight of each of `names`, summing to 1, in alphabetical order."""
    total = math.fsum(mixture.values())
    return {name: mixture.get(name, 0.0) / total for name in sorted(names)}


def source_share(spec: ArcticTrainingSpec) -> float:
    """Return the share of each source that a run uses: 1 but for one that stands for a larger run."""
    simulated = spec.data.simulated_tokens
    if simulated is None:
        return 1.0
    return min(1.0, sum(parse_tokens(stage.tokens) for stage in spec.curriculum.stages) / parse_tokens(simulated))


def source_weights(spec: ArcticTrainingSpec) -> dict[str, float]:
    """Return how many tokens the curriculum takes from each source, about."""
    totals = dict.fromkeys((source.name for source in spec.data.sources), 0.0)
    for stage in spec.curriculum.stages:
        for mixture in (stage.mixture, stage.final_mixture or stage.mixture):  # half of the stage each, about
            for name, weight in mixture.items():
                totals[name] += parse_tokens(stage.tokens) * weight / sum(mixture.values()) / 2
    return {name: total for name, total in totals.items() if total > 0}


@dataclass(frozen=True)
class Curriculum:
    """All stages in order."""

    stages: Sequence[StagePlan]
    share: float = 1.0
    """Of each source that is used."""

    @classmethod
    def plan(cls, spec: ArcticTrainingSpec) -> "Curriculum":
        """Lay the stages of a manifest out over steps; ValueError names a stage that the batch does not fit."""
        stages: list[StagePlan] = []
        first, rate = 0, 0.0
        for index, stage in enumerate(spec.curriculum.stages):
            own = stage.tokens_per_step
            tokens_per_step = parse_tokens(spec.batch.tokens_per_step if own is None else own)
            if tokens_per_step < 1 or tokens_per_step % stage.sequence_length:
                raise ValueError(
                    f"{'batch.' if own is None else ''}tokensPerStep {tokens_per_step} is not a multiple of the "
                    f"sequenceLength {stage.sequence_length} of stage {stage.name}"
                )
            steps = math.ceil(parse_tokens(stage.tokens) / tokens_per_step)
            stages.append(StagePlan(index, stage, first, steps, tokens_per_step, rate))
            first += steps
            rate = stages[-1].learning_rate(first - 1)
        return cls(tuple(stages), source_share(spec))

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.stages[-1].end_step

    def stage_at(self, step: int) -> StagePlan:
        """Return the stage that step `step` (from zero) belongs to; the last one once the run is done."""
        return next((stage for stage in self.stages if step < stage.end_step), self.stages[-1])

    def tokens_done(self, step: int) -> int:
        """Return the tokens spent after `step` steps, over all stages."""
        return sum(stage.tokens_done(step) for stage in self.stages)
