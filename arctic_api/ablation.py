"""`ArcticAblation`: many small trainings that differ in something, to find out what is best."""

from typing import Annotated, Any, Literal

from pydantic import Field

from arctic_api.common import (
    MAP_BY_NAME,
    MAP_BY_TYPE,
    OPAQUE,
    Condition,
    Count,
    ItemName,
    Manifest,
    ObjectName,
    PositiveFloat,
    Resource,
    Timestamp,
    Tokens,
)
from arctic_api.training import ArcticTrainingSpec

KIND = "ArcticAblation"
PLURAL = "arcticablations"
SHORT_NAME = "aab"

TrialState = Literal["Waiting", "Running", "Judging", "Resting", "Done", "Failed"]
SwarmPart = Literal["half", "whole"]
"""Of a swarm, from which something is foretold."""
AblationTask = SwarmPart | Literal["report"]
"""What a pod of an ablation may be for."""
MAX_NAME = 31
"""Longest name: its trainings append a dash and eight digits to it."""
MAX_TRIALS = 1024
"""Trainings of a grid or of changes: all are in the status."""
FIELD_PATTERN = r"^[a-z][A-Za-z0-9]*(\.[A-Za-z0-9_-]+)*$"

FieldPath = Annotated[str, Field(pattern=FIELD_PATTERN, max_length=256)]


class Setting(Resource):
    """A field of the training, and what it is to be."""

    field: FieldPath
    """Path in `training`; an item of a list by its name, as in `curriculum.stages.general.learningRate.peak`."""
    value: Any = Field(json_schema_extra=OPAQUE)
    """Its value, as a training's manifest has it."""


class Axis(Resource):
    """A field of the training, and all that it is to be: one after the other."""

    field: FieldPath
    """Path in `training`; an item of a list by its name, as in `curriculum.stages.general.learningRate.peak`."""
    values: Annotated[list[Annotated[Any, Field(json_schema_extra=OPAQUE)]], Field(min_length=1, max_length=64)]
    """Its values, as a training's manifest has them."""


class Change(Resource):
    """One variant of the training."""

    name: ItemName
    """What it is called in the ranking."""
    set: Annotated[list[Setting], Field(min_length=1, max_length=32)]
    """What differs from `training`."""


class MixtureSearch(Resource):
    """A swarm of trainings with drawn mixtures, from which the best one of each stage is foretold."""

    runs: Annotated[int, Field(ge=8, le=512)] = 32
    """Trainings of the swarm, the one by hand and the proportional one among them; the second half of them are drawn
    around what the first half foretells as the best."""
    around: Annotated[dict[str, PositiveFloat], Field(min_length=2, max_length=64)] | None = None
    """Weights around which a stage's mixtures are drawn, by source; if unset what `training` takes of each source."""
    concentration: PositiveFloat = 1.0
    """How close to them: the sum of a Dirichlet distribution's parameters is so many times the number of sources."""
    confirm: Annotated[int, Field(ge=1, le=16)] = 2
    """Seeds with which the foretold curriculum, the one by hand and the proportional one are trained at the end."""


class Objective(Resource):
    """What is best: the least loss on held-out text, or the most right answers; exactly one of both."""

    perplexity: Annotated[dict[str, PositiveFloat], Field(min_length=1, max_length=5)] | None = None
    """Weight of each category's held-out text: the objective is the weighted mean of its loss, in nats a token."""
    suites: Annotated[dict[str, PositiveFloat], Field(min_length=1, max_length=6)] | None = None
    """Weight of each suite: the objective is the weighted mean of their figures, from 0 to 1. Enterprise intelligence
    is `{humaneval-plus: 1, mbpp-plus: 1, spider: 2, ifeval: 2}`. Each training is evaluated where it rests, on what
    `training.evaluation.data` names."""

    @property
    def more_is_better(self) -> bool:
        """Whether the best value is the largest."""
        return self.suites is not None


class Halving(Resource):
    """Stops the poor early (ASHA, Li et al., 2020): of those that have come to a rung the best go on to the next."""

    factor: Annotated[int, Field(ge=2, le=16)] = 3
    """One of so many goes on, and a rung has so many times the tokens of the one before."""
    first: Tokens
    """Tokens of the first rung."""


class Extrapolation(Resource):
    """What is foretold beyond the tokens that were trained."""

    tokens: Tokens
    """Budget that the loss is foretold for; trainings read data as often as it would (`data.simulatedTokens`)."""


class ArcticAblationSpec(Resource):
    """What is varied, what it is judged by, and what it may take."""

    training: ArcticTrainingSpec
    """The training that all others are made from."""
    grid: Annotated[list[Axis], Field(min_length=1, max_length=8)] | None = None
    """Fields with several values each: every combination is a variant."""
    changes: Annotated[list[Change], Field(min_length=1, max_length=256)] | None = Field(
        None, json_schema_extra=MAP_BY_NAME
    )
    """Variants by name; `training` as it stands is one too, called `base`."""
    mixture: MixtureSearch | None = None
    """Mixtures by stage, found by a swarm of trainings."""
    objective: Objective
    """What is best."""
    seeds: Annotated[int, Field(ge=1, le=64)] = 1
    """How often each variant is trained, from the training's own seed on; a swarm draws one a training instead."""
    halving: Halving | None = None
    """Stops the poor early; if unset all are trained to their end."""
    budget: Tokens | None = None
    """Tokens that all trainings together may take; nothing begins that would take more."""
    budget_gpu_hours: PositiveFloat | None = Field(None, alias="budgetGPUHours")
    """The same in GPU hours, as the trainings count them (`gpuHours`), by what a token has taken so far; on a cluster
    alone."""
    parallelism: Annotated[int, Field(ge=1, le=256)] = 1
    """Trainings at a time."""
    reuse: ObjectName | None = None
    """An earlier ablation in this namespace: what it has trained just so is not trained again."""
    target: Extrapolation | None = None
    """What is foretold beyond the tokens that were trained."""


class PointStatus(Resource):
    """A rung that a training came to."""

    tokens: int
    """Tokens trained."""
    objective: str
    """Objective there: nats a token, or a share of 1."""
    evaluation: str | None = None
    """Name of the ArcticEvaluation that found it, where the objective is of suites."""


class TrialStatus(Resource):
    """One training of an ablation."""

    name: str
    """Name of the ArcticTraining."""
    variant: str
    """What it differs in."""
    seed: int
    """Its seed."""
    state: TrialState
    """`Judging`: it rests, and is evaluated; `Resting` at a rung until it is among the best there, or for good."""
    tokens: int = 0
    """Tokens at the last rung that it came to."""
    points: list[PointStatus] | None = None
    """The rungs that it came to."""
    message: str | None = None
    """Why it has failed."""


class RankStatus(Resource):
    """One variant in the ranking."""

    name: str
    """What it differs in."""
    tokens: int
    """Tokens of each of its trainings."""
    objective: str
    """Mean of the objective over its seeds: nats a token, or a share of 1."""
    interval: str | None = None
    """95% interval of that mean over seeds, such as `2.31 to 2.36`; unset for one seed."""


class ForecastStatus(Resource):
    """What a curriculum is foretold to come to."""

    name: str
    """`foretold`, `by hand` or `proportional`."""
    objective: str
    """Objective at its end: nats a token, or a share of 1."""
    interval: str
    """95% interval of all the trainings together that put it to the test."""


class ForetoldStatus(Resource):
    """What a swarm foretells."""

    name: SwarmPart
    """Whether from its first half, around which the second is drawn, or from all of it."""
    digest: str
    """Of the trainings that it was foretold from: after an edit that changes these it is foretold anew."""
    mixtures: dict[str, str]
    """The best mixture of each stage, such as `books:0.2 code:0.8`."""
    forecasts: Annotated[list[ForecastStatus], Field(json_schema_extra=MAP_BY_NAME)]
    """What that curriculum, the one by hand and the proportional one are foretold to come to."""


class ArcticAblationStatus(Resource):
    """What was observed last. Real numbers are text, as Kubernetes conventions ask."""

    state: str | None = None
    """One word for people."""
    observed_generation: int | None = None
    """The metadata.generation that the rest was judged from."""
    conditions: list[Condition] | None = Field(None, json_schema_extra=MAP_BY_TYPE)
    """Degraded, Succeeded, Failed."""
    planned: Count | None = None
    """Trainings that are planned, if none is stopped early."""
    tokens: int | None = None
    """Tokens trained so far, over all trainings."""
    gpu_hours: str | None = None
    """GPU hours so far, over all trainings."""
    trials: list[TrialStatus] | None = Field(None, json_schema_extra=MAP_BY_NAME)
    """The trainings."""
    ranking: list[RankStatus] | None = Field(None, json_schema_extra=MAP_BY_NAME)
    """The variants that came furthest, the best first."""
    foretold: list[ForetoldStatus] | None = Field(None, json_schema_extra=MAP_BY_NAME)
    """What the swarm of `mixture` foretells."""
    best: str | None = None
    """Name of the best variant."""
    folder: str | None = None
    """Folder in the trainings' claim with `results.json`, `report.html` and `best.yaml`; there at the end."""
    best_config_map: str | None = None
    """Name of the ConfigMap with that variant as an ArcticTraining, in `training.json`; there at the end."""
    completion_time: Timestamp | None = None
    """When it succeeded or failed."""


class ArcticAblation(Manifest):
    """Finds out by small trainings what is best."""

    spec: ArcticAblationSpec
    """What is varied, what it is judged by, and what it may take."""
    status: ArcticAblationStatus | None = None
    """What was observed last."""
