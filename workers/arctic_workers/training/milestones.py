"""Steps at which a run is judged, or rests until its manifest says more. Pure."""

import math
from dataclasses import dataclass

from arctic_api.common import parse_tokens
from arctic_api.training import ArcticTrainingSpec
from arctic_workers.training.curriculum import Curriculum

CURVE = "evaluation/curve.jsonl"
"""In a run's folder: what each evaluation found, a line each."""


@dataclass(frozen=True)
class Milestones:
    """What a manifest says of them."""

    every: int | None
    """Steps between evaluations, besides those at stages' ends; None for no others."""
    rest: int | None
    """Step at which the run rests; None where it goes on to its end."""

    @classmethod
    def of(cls, spec: ArcticTrainingSpec, curriculum: Curriculum) -> "Milestones":
        """Lay a manifest's milestones out over steps: it rests after the fewest whole steps that have the tokens."""
        every = spec.evaluation.every if spec.evaluation else None
        rest = None if spec.suspend_at is None else max(1, step_of(curriculum, parse_tokens(spec.suspend_at)))
        return cls(every, rest)

    def evaluates(self, step: int) -> bool:
        """Whether the run is judged after `step` steps."""
        return self.every is not None and step % self.every == 0

    def rests(self, step: int) -> bool:
        """Whether the run goes no further than `step` steps for now."""
        return self.rest is not None and step >= self.rest


def step_of(curriculum: Curriculum, tokens: int) -> int:
    """Return after how many steps of the run so many tokens are spent, at least."""
    stages = curriculum.stages
    spent = 0
    for stage in stages:
        size = stage.steps * stage.tokens_per_step
        if tokens <= spent + size:
            return stage.first_step + math.ceil((tokens - spent) / stage.tokens_per_step)
        spent += size
    return stages[-1].end_step
