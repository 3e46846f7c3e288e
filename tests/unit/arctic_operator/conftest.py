"""Small objects for the operator's tests: specifications, and what the cluster would show of their children."""

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest
from small_specs import TRAINING_SPEC

from arctic_api import API_VERSION
from arctic_api.evaluation import ArcticEvaluationSpec, ArcticEvaluationStatus
from arctic_api.inference import ArcticInferenceSpec, ArcticInferenceStatus
from arctic_api.training import ArcticTrainingSpec, ArcticTrainingStatus
from arctic_api.world import Label, Report
from arctic_operator.cache import Cache, Key, Listing
from arctic_operator.clock import ClusterClock
from arctic_operator.cluster import Cluster
from arctic_operator.evaluations import Evaluation
from arctic_operator.observe import INFERENCE_REVISION
from arctic_operator.observed import Identity, Inference, Pod, Training, group_set_of, job_of, pod_of, read_status
from arctic_operator.reconcile import Reconciler
from arctic_operator.settings import Settings
from arctic_operator.workqueue import WorkQueue

UID = "0a1b2c3d-0000-4000-8000-000000000001"
START = datetime(2026, 1, 1, tzinfo=UTC)

EVALUATION_SPEC: dict[str, Any] = {
    "model": {"training": "tiny"},
    "suites": [
        {"name": "gsm8k", "uri": "file:///suites/test.jsonl"},
        {"name": "spider", "uri": "file:///suites/spider"},
    ],
    "results": {"claimName": "store"},
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
        stored = spec.wire()
        made_of = {field: stored.get(field) for field in INFERENCE_REVISION}
        return Inference(identity, generation, START, False, revision, spec, before, made_of)

    def evaluation(self, status: dict[str, Any] | None = None, generation: int = 1, **fields: Any) -> Evaluation:
        spec = ArcticEvaluationSpec.model_validate(EVALUATION_SPEC | fields)
        before = read_status(ArcticEvaluationStatus, status or {})
        identity = Identity("ArcticEvaluation", "team", "judged", UID)
        return Evaluation(identity, generation, False, f"r{generation}", spec, before)

    def pod(self, index: int = 0, attempt: int = 1, **fields: Any) -> Pod:
        name = f"tiny-a{attempt}-{index}"
        pod = Pod(name, f"uid-{name}", index, "Running", START, attempt, node=f"n{index}", started=START)
        return replace(pod, **fields)

    def report(self, outcome: str = "succeeded", **fields: Any) -> str:
        return Report.model_validate({"outcome": outcome} | fields).model_dump_json(by_alias=True, exclude_none=True)

    def seconds(self, count: float) -> datetime:
        return START + timedelta(seconds=count)

    @property
    def lws_settings(self) -> Settings:
        """Settings that ask for LeaderWorkerSets."""
        return self.settings.model_copy(update={"inference_groups": "LeaderWorkerSet", "leader_worker_sets": True})

    maker: ClassVar = {"kind": "Job", "name": "made", "uid": "made", "controller": True}
    """Whose a pod is where it is no matter whose."""
    job_of = staticmethod(job_of)
    pod_of = staticmethod(pod_of)
    group_set_of = staticmethod(group_set_of)


@pytest.fixture(scope="session")
def build() -> Build:
    return Build(Settings(namespace="arctic", worker_image="worker:1", gateway_image="gateway:1"))


class ApiServer(Cluster):
    """An API server in memory, with no controllers and no admission: what a reconciler reads and writes."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.version = 0
        self.clock = ClusterClock()

    def put(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Keep an object, over what there was of it, and return it as the API server does: of JSON alone."""
        self.version += 1
        manifest = json.loads(json.dumps(manifest))
        metadata = manifest["metadata"]
        key = (manifest["kind"], metadata["namespace"], metadata["name"])
        known = self.objects.get(key, {})
        made = {"uid": f"uid-{self.version}", "creationTimestamp": "2026-01-01T00:00:00Z"}
        stamped = made | known.get("metadata", {}) | metadata | {"resourceVersion": str(self.version)}
        self.objects[key] = known | manifest | {"metadata": stamped}
        return self.objects[key]

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        return [manifest for key, manifest in self.objects.items() if key[0] in kinds]

    async def get(self, kind, namespace, name):
        return self.objects.get((kind, namespace, name))

    async def list_children(self, kind, namespace, owner):
        children = [m for m in self.of(kind) if m["metadata"].get("labels", {}).get(Label.UID) == owner]
        return Listing(children, self.version)

    async def list_nodes(self):
        return Listing(self.of("Node"), self.version)

    async def apply_own(self, manifest, subresource="", **_):
        return self.put(manifest)

    async def create(self, manifest):
        metadata = manifest["metadata"]
        taken = (manifest["kind"], metadata["namespace"], metadata["name"]) in self.objects
        return None if taken else self.put(manifest)

    async def merge(self, manifest, dropped):
        return self.put(manifest)

    async def mark(self, mark):
        known = self.objects[mark.kind, mark.namespace, mark.name]
        metadata = dict(known["metadata"])
        metadata["labels"] = metadata["labels"] | dict(mark.labels)
        metadata["annotations"] = metadata.get("annotations", {}) | dict(mark.annotations)
        spec = {} if mark.replicas is None else {"spec": known["spec"] | {"replicas": mark.replicas}}
        return self.put(known | {"metadata": metadata} | spec)

    async def adopt(self, adopt):
        if known := self.objects.get((adopt.kind, adopt.namespace, adopt.name)):
            changed = {"labels": dict(adopt.labels), "ownerReferences": [dict(adopt.owner)]}
            self.put(known | {"metadata": known["metadata"] | changed})

    async def delete(self, delete):
        self.objects.pop((delete.kind, delete.namespace, delete.name), None)

    async def request(self, method, path, *, query=None, **_):
        if method == "GET" and path.endswith("/events"):
            asked, value = query["fieldSelector"].split("=")
            fields = [{"reason": e["reason"], "involvedObject.uid": e["involvedObject"]["uid"]} for e in self.events]
            told = zip(self.events, fields, strict=True)
            return {"items": [event for event, field in told if field[asked] == value]}
        return {}

    def tell(self, uid: str, reason: str, when: str, message: str = "") -> None:
        """Let a controller tell an event of an object."""
        event = {"involvedObject": {"uid": uid}, "reason": reason, "lastTimestamp": when, "message": message}
        self.events.append(event)


class Operator:
    """A reconciler with a cache that shows what its test lets it see, besides its own writes and looks."""

    def __init__(self, settings: Settings) -> None:
        self.server, self.settings = ApiServer(), settings
        self.restart()

    def add(self, kind: str, name: str = "tiny", generation: int = 1, **spec: Any) -> Key:
        """Make or edit a custom resource, and show it."""
        basic = {"ArcticTraining": TRAINING_SPEC, "ArcticInference": INFERENCE_SPEC}.get(kind, {})
        uid = UID if name == "tiny" else f"uid-{name}"
        metadata = {"name": name, "namespace": "team", "uid": uid, "generation": generation}
        manifest = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": basic | spec}
        self.cache.put(self.server.put(manifest))
        return Key(kind, "team", name)

    def set_status(self, key: Key, **status: Any) -> None:
        """Set a custom resource's status, and show it."""
        self.cache.put(self.server.put(self.server.objects[tuple(key)] | {"status": status}))

    def remove(self, kind: str, name: str) -> None:
        """Delete an object, and show it."""
        self.cache.remove(self.server.objects.pop((kind, "team", name)))

    def pods(self, phase: str, group: str = "", **container: Any) -> list[dict[str, Any]]:
        """Set the two pods of a group, or of attempt 1, unseen."""
        attempt = {Label.KIND: "ArcticTraining", Label.ATTEMPT: "1"}
        owner = {Label.KIND: "ArcticInference", Label.GROUP: group} if group else attempt
        labels = {Label.MANAGED: "true", Label.UID: UID, Label.NAME: "tiny"} | owner
        return [
            self.server.put(
                {
                    "kind": "Pod",
                    "metadata": {
                        "name": f"p{index}",
                        "namespace": "team",
                        "labels": labels,
                        "ownerReferences": [Build.maker],
                        "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
                    },
                    "spec": {"nodeName": f"n{index}"},
                    "status": {"phase": phase, "containerStatuses": [{"name": "worker", "state": container}]},
                }
            )
            for index in range(2)
        ]

    def nodes(self, *ready: bool) -> list[dict[str, Any]]:
        """Set the nodes of those pods, unseen."""

        def condition(is_ready: bool) -> dict[str, Any]:
            return {"type": "Ready", "status": str(is_ready), "lastTransitionTime": "2026-01-01T00:00:00Z"}

        return [
            self.server.put(
                {
                    "kind": "Node",
                    "metadata": {"name": f"n{index}", "namespace": ""},
                    "spec": {},
                    "status": {"conditions": [condition(is_ready)]},
                }
            )
            for index, is_ready in enumerate(ready)
        ]

    def status(self, key: Key) -> dict[str, Any]:
        return self.server.objects[tuple(key)].get("status", {})

    def condition(self, key: Key, kind: str) -> dict[str, Any]:
        return next(c for c in self.status(key)["conditions"] if c["type"] == kind)

    def restart(self) -> None:
        """Begin anew with what is remembered nowhere but in the cluster."""
        self.cache = Cache()
        self.queue: WorkQueue[Key] = WorkQueue()
        self.reconciler = Reconciler(self.server, self.cache, self.queue, self.settings)
        for manifest in self.server.objects.values():
            self.cache.put(manifest)

    async def reconcile(self, key: Key) -> None:
        await self.reconciler._attempt(key)


@pytest.fixture
def operator(build: Build) -> Operator:
    return Operator(build.settings)


@pytest.fixture
def operator_with() -> type[Operator]:
    """Makes an operator with other settings."""
    return Operator
