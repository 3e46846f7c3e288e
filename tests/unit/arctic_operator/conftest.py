"""Small objects for the operator's tests: specifications, and what the cluster would show of their children."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from arctic_api.inference import ArcticInferenceSpec, ArcticInferenceStatus
from arctic_api.training import ArcticTrainingSpec, ArcticTrainingStatus
from arctic_api.world import Report
from arctic_operator.observed import Identity, Inference, Pod, Training, job_of, pod_of, read_status, stateful_set_of
from arctic_operator.settings import Settings

UID = "0a1b2c3d-0000-4000-8000-000000000001"
START = datetime(2026, 1, 1, tzinfo=UTC)

TRAINING_SPEC: dict[str, Any] = {
    "model": {"preset": "arctic-tiny"},
    "tokenizer": {"train": {"vocabSize": 512}},
    "data": {"sources": [{"name": "books", "category": "general", "uri": "file:///books"}]},
    "curriculum": {
        "stages": [{"name": "general", "tokens": "1M", "mixture": {"books": 1}, "learningRate": {"peak": 0.001}}]
    },
    "batch": {"tokensPerStep": 4096},
    "parallelism": {"nodes": 2},
    "checkpoint": {"volume": {"claimName": "store"}},
}
INFERENCE_SPEC: dict[str, Any] = {"model": {"uri": "file:///weights"}, "parallelism": {"pipeline": 2}}


@dataclass(frozen=True)
class Build:
    """Makes what tests need."""

    settings: Settings
    start: datetime = START
    uid: str = UID

    def training(self, status: dict[str, Any] | None = None, generation: int = 1, **fields: Any) -> Training:
        spec = ArcticTrainingSpec.model_validate(TRAINING_SPEC | fields)
        before = read_status(ArcticTrainingStatus, status or {})
        identity = Identity("ArcticTraining", "team", "tiny", UID)
        return Training(identity, generation, START, False, f"r{generation}", spec, before)

    def inference(self, status: dict[str, Any] | None = None, generation: int = 1, **fields: Any) -> Inference:
        spec = ArcticInferenceSpec.model_validate(INFERENCE_SPEC | fields)
        before = read_status(ArcticInferenceStatus, status or {})
        identity = Identity("ArcticInference", "team", "tiny", UID)
        revision = f"s{generation}-{spec.engine.image}"
        return Inference(identity, generation, START, False, revision, spec, before)

    def pod(self, index: int = 0, attempt: int = 1, **fields: Any) -> Pod:
        name = f"tiny-a{attempt}-{index}"
        pod = Pod(name, f"uid-{name}", index, "Running", START, attempt, node=f"n{index}", started=START)
        return replace(pod, **fields)

    def report(self, outcome: str = "succeeded", **fields: Any) -> str:
        return Report.model_validate({"outcome": outcome} | fields).model_dump_json(by_alias=True, exclude_none=True)

    def seconds(self, count: float) -> datetime:
        return START + timedelta(seconds=count)

    job_of = staticmethod(job_of)
    pod_of = staticmethod(pod_of)
    stateful_set_of = staticmethod(stateful_set_of)


@pytest.fixture(scope="session")
def build() -> Build:
    return Build(Settings(namespace="arctic", worker_image="worker:1", gateway_image="gateway:1"))
