"""`ArcticEvaluation`: one model on the suites of enterprise intelligence, judged once."""

from typing import Annotated, Literal

from pydantic import Field

from arctic_api.common import (
    ENDPOINT_PATTERN,
    MAP_BY_NAME,
    MAP_BY_TYPE,
    SET,
    BaseWeights,
    Condition,
    ItemName,
    Manifest,
    ObjectName,
    Resource,
    Resources,
    SecretReference,
    Subdomain,
    Timestamp,
    Uri,
    WorkerTemplate,
)
from arctic_api.training import MAX_SEED, CheckpointVolume, SuiteData

KIND = "ArcticEvaluation"
PLURAL = "arcticevaluations"
SHORT_NAME = "aev"

SuiteState = Literal["Waiting", "Running", "Done", "NotRun", "Unfit"]


class Endpoint(Resource):
    """Any API as OpenAI's."""

    url: Annotated[str, Field(pattern=ENDPOINT_PATTERN, max_length=1024)]
    """Its address, up to and with `/v1`."""
    model: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the model there."""


class EvaluatedModel(Resource):
    """What is evaluated: exactly one of `training`, `uri`, `service` and `endpoint`.

    Weights are served by the native engine in the evaluation's own pod, in bf16; what doesn't fit there takes an
    ArcticInference, and its name in `service`.
    """

    training: ObjectName | None = None
    """An ArcticTraining in this namespace: its export, or what it was at the end of `stage`."""
    stage: ItemName | None = None
    """A stage of `training`, whose last checkpoint is evaluated while the training goes on."""
    uri: Uri | None = None
    """A folder in the Hugging Face layout, or a run's checkpoint: `file:///...` alone."""
    service: ObjectName | None = None
    """An ArcticInference in this namespace, asked at its stable address."""
    endpoint: Endpoint | None = None
    """Any API as OpenAI's."""
    credentials: SecretReference | None = None
    """Secret with the key that a service or endpoint takes: the first line of the first of its values that has one."""


class ArcticEvaluationSpec(Resource):
    """What is evaluated, on what, and how. Of what scores follow from nothing can change: make another object."""

    model: EvaluatedModel
    """What is evaluated."""
    suites: Annotated[list[SuiteData], Field(min_length=1, max_length=7)] = Field(json_schema_extra=MAP_BY_NAME)
    """What it is asked."""
    samples: Annotated[int, Field(ge=1, le=1000)] = 1
    """Answers to each question."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """How answers are drawn: 0 takes the likeliest token each time."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    """Seed of each question's first sample; the next ones count up from it."""
    api: Literal["chat", "completions"] | None = None
    """Whether questions go to the chat template; if unset they do, of weights only where these have a template."""
    concurrency: Annotated[int, Field(ge=1, le=64)] = 4
    """Questions that are asked, and answers that are judged, at once."""
    results: CheckpointVolume
    """Claim for answers, verdicts, `results.json` and `report.html`."""
    compare: Annotated[list[ObjectName], Field(min_length=1, max_length=8)] | None = Field(None, json_schema_extra=SET)
    """Other evaluations in this namespace, in the same claim, that `report.html` shows beside this one: it begins once
    they have succeeded."""
    retries: Annotated[int, Field(ge=0, le=100)] = 3
    """Pods that may fail before the evaluation does; each goes on where the one before was. Drains and lost nodes don't
    count."""
    priority_class_name: Subdomain | None = None
    """PriorityClass of the pod."""
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image of the pod; the operator's default for workers if unset."""
    resources: Resources | None = None
    """Compute resources of the pod; weights are served on its GPU if it has one."""
    template: WorkerTemplate | None = None
    """What else may be said about the pod: with `volumes`, the claims with the suites' data."""


class FigureStatus(Resource):
    """A figure and its 95% interval, by bootstrap over the questions."""

    name: str
    """What is measured."""
    value: str
    """The figure: a share from 0 to 1, but for perplexities."""
    interval: str
    """Its interval, such as `0.412 to 0.530`."""


class SuiteStatus(Resource):
    """One suite."""

    name: str
    """Name of the suite."""
    state: SuiteState
    """`Unfit`: its judge fails on the suite's own answers on that machine; `NotRun`: the evaluation ended before it."""
    answered: int = 0
    """Answers so far; of `perplexity` texts."""
    judged: int = 0
    """Answers that were judged so far."""
    planned: int = 0
    """Answers in all; 0 before they are counted."""
    figures: list[FigureStatus] | None = Field(None, json_schema_extra=MAP_BY_NAME)
    """What it found, the suite's own figure first."""
    message: str | None = None
    """Why it was not run, or is unfit."""


class ScoreStatus(Resource):
    """Enterprise intelligence: mean(mean(HumanEval+, MBPP+), Spider, IFEval), which takes all four."""

    value: str
    """The mean, from 0 to 1."""
    interval: str
    """Its 95% interval."""


class ArcticEvaluationStatus(Resource):
    """What was observed last. Real numbers are text, as Kubernetes conventions ask."""

    state: str | None = None
    """One word for people."""
    observed_generation: int | None = None
    """The metadata.generation that the rest was judged from."""
    conditions: list[Condition] | None = Field(None, json_schema_extra=MAP_BY_TYPE)
    """Degraded, Succeeded, Failed."""
    suites: list[SuiteStatus] | None = Field(None, json_schema_extra=MAP_BY_NAME)
    """How far each suite is, and what it found."""
    enterprise_intelligence: ScoreStatus | None = None
    """The mean of the four; unset where one of them was not run, or is unfit."""
    folder: str | None = None
    """Folder in the claim of `results`, with a folder a suite, `results.json` and `report.html`."""
    start_time: Timestamp | None = None
    """When its pod was made first."""
    completion_time: Timestamp | None = None
    """When it succeeded or failed."""
    weights: BaseWeights | None = None
    """Weights of the training that `spec.model` names, as they were when it began."""


class ArcticEvaluation(Manifest):
    """Evaluates one model on suites."""

    spec: ArcticEvaluationSpec
    """What is evaluated, on what, and how."""
    status: ArcticEvaluationStatus | None = None
    """What was observed last; written by the operator."""
