"""What is read of an evaluation and of what it evaluates, reduced to what plans need. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from arctic_api.common import BaseWeights
from arctic_api.evaluation import ArcticEvaluationSpec, ArcticEvaluationStatus, EvaluatedModel
from arctic_api.uris import path_of
from arctic_operator.live import Live
from arctic_operator.observed import (
    Identity,
    Job,
    Judged,
    Node,
    Pod,
    Trouble,
    claim_of,
    conditions_of,
    exported_by,
    lack_of,
    read_status,
)

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """An ArcticEvaluation whose specification could be read."""

    identity: Identity
    generation: int
    deleting: bool
    revision: str
    spec: ArcticEvaluationSpec
    status: ArcticEvaluationStatus


@dataclass(frozen=True)
class Target:
    """What is evaluated, as its pod gets at it: weights of a training, another folder, or an API."""

    name: str
    """Name of the model: at the API, and in results."""
    weights: BaseWeights | None = None
    folder: str | None = None
    url: str | None = None
    """Up to and with `/v1`."""


@dataclass(frozen=True)
class Awaited:
    """Why there is nothing to evaluate yet."""

    state: str
    """One word for people."""
    message: str
    lack: Trouble | None = None
    """Why there will be nothing of itself."""


@dataclass(frozen=True)
class EvaluationSeen:
    """Everything that is known about one evaluation at one moment. `nodes` is None where nodes may not be read."""

    target: Target | Awaited
    compared: tuple[str, ...] | Awaited = ()
    """Folders of the evaluations that it is compared with."""
    jobs: Sequence[Job] = ()
    pods: Sequence[Pod] = ()
    nodes: Mapping[str, Node] | None = None
    live: Live | None = None
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Why a Job has no pod, by its name, where that was asked for."""


def judged_of(manifest: Manifest) -> Judged:
    """Reduce an ArcticEvaluation that is a training's own."""
    status = read_status(ArcticEvaluationStatus, dict(manifest.get("status") or {}))
    done = [suite for suite in status.suites or () if suite.state == "Done"]
    figures = {f"{suite.name}/{figure.name}": figure.value for suite in done for figure in suite.figures or ()}
    ends = (conditions_of(dict(manifest)).get(kind, {}).get("status") for kind in ("Succeeded", "Failed"))
    return Judged(manifest["metadata"]["name"], figures, "True" in ends)


def target_of(evaluation: Evaluation, training: Manifest | None, service: Manifest | None) -> Target | Awaited:
    """Return what an evaluation is of, or what it waits for.

    `training` and `service` are the objects that it names, None where there are none.
    """
    model = evaluation.spec.model
    if model.training is not None:
        return _of_training(evaluation, model, model.training, training)
    if model.service is not None:
        return _of_service(evaluation.identity.namespace, model.service, service)
    if model.endpoint is not None:
        return Target(model.endpoint.model, url=model.endpoint.url)
    return Target(evaluation.identity.name, folder=path_of(model.uri or ""))


def compared_with(evaluation: Evaluation, others: Mapping[str, Manifest | None]) -> tuple[str, ...] | Awaited:
    """Return the folders of the evaluations that one is compared with, or what it waits for.

    `others` are these by name, None where there is none.
    """
    folders = []
    for name, other in others.items():
        state, sentence = "WaitingForEvaluation", f"waits for ArcticEvaluation {name} to succeed"
        if other is None:
            namespace = evaluation.identity.namespace
            there_is_none = f"there is no ArcticEvaluation {name} in namespace {namespace}: make it, or leave it out"
            return Awaited(state, sentence, Trouble("NoSuchEvaluation", there_is_none))
        claim = other["spec"]["results"]["claimName"]
        if claim != evaluation.spec.results.claim_name:
            elsewhere = (
                f"ArcticEvaluation {name} has its results in claim {claim}: write it in results, or leave it out"
            )
            return Awaited(state, sentence, Trouble("InAnotherClaim", elsewhere))
        if conditions_of(other).get("Succeeded", {}).get("status") != "True":
            return Awaited(state, sentence)
        folders.append(other["status"]["folder"])
    return tuple(folders)


def _of_training(
    evaluation: Evaluation, model: EvaluatedModel, name: str, training: Manifest | None
) -> Target | Awaited:
    known, called = evaluation.status.weights, f"{name}-{model.stage}" if model.stage else name
    lack = lack_of(training, evaluation.identity.namespace, name)
    if model.stage is None:
        found = exported_by(training) if training else None
        sentence = f"waits for ArcticTraining {name} to export its weights"
    else:
        found, lack = _at_end_of(model.stage, training), _lack_of_stage(model.stage, training, lack)
        sentence = f"waits for ArcticTraining {name} to end stage {model.stage}"
    if weights := found or known:
        return Target(called, weights=weights)
    return Awaited("WaitingForTraining", sentence, lack)


def _at_end_of(stage: str, training: Manifest | None) -> BaseWeights | None:
    """Return the checkpoint of a stage's end, once it is committed: where it will be is said before that."""
    if training is None:
        return None
    status = training.get("status") or {}
    stages = status.get("stages") or []
    names = [each["name"] for each in stages]
    upto = stages[: names.index(stage) + 1] if stage in names else []
    uri = upto[-1].get("checkpoint") if upto else None
    committed = (status.get("lastCheckpoint") or {}).get("tokens", 0)
    if not uri or committed < sum(each.get("tokens", 0) for each in upto):
        return None
    folder = path_of(str(uri))
    return BaseWeights(training=training["metadata"]["name"], folder=folder, claim_name=claim_of(training))


def _lack_of_stage(stage: str, training: Manifest | None, lack: Trouble | None) -> Trouble | None:
    """Return why a stage has left no checkpoint and never will: what is exported doesn't matter."""
    stages = [each["name"] for each in training["spec"]["curriculum"]["stages"]] if training else []
    if training is not None and stage not in stages:
        known = ", ".join(stages)
        return Trouble("NoSuchStage", f"ArcticTraining {training['metadata']['name']} has the stages {known}: name one")
    return None if lack and lack.reason == "BaseExportsNothing" else lack


def _of_service(namespace: str, name: str, service: Manifest | None) -> Target | Awaited:
    state, sentence = "WaitingForService", f"waits for ArcticInference {name} to be ready"
    if service is None:
        there_is_none = f"there is no ArcticInference {name} in namespace {namespace}: make it, or name another"
        return Awaited(state, sentence, Trouble("NoSuchService", there_is_none))
    status = service.get("status") or {}
    answers = conditions_of(service).get("Available", {}).get("status") == "True"
    # One that is scaled to zero is woken by being asked.
    wakes = status.get("state") == "Idle" and bool(service["spec"].get("autoscaling"))
    if not (answers or wakes):
        return Awaited(state, sentence)
    url = status["url"]
    return Target(service["spec"]["model"].get("servedName") or name, url=f"{url}/v1")
