"""From what the watches have shown to what planning reads; where that is not enough, from the API server itself."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from arctic_api import inference as inference_api
from arctic_api import training as training_api
from arctic_api.common import BaseWeights
from arctic_api.inference import ArcticInferenceSpec, ArcticInferenceStatus
from arctic_api.training import ArcticTrainingSpec, ArcticTrainingStatus, CheckpointRequest
from arctic_api.verdict import field_problems, verdict
from arctic_api.world import CHECKPOINT_REQUEST, Label
from arctic_operator.cache import CUSTOM_KINDS, Cache, Key, Manifest, key_of, version_of
from arctic_operator.cluster import CHILD_KINDS, Cluster
from arctic_operator.live import Live
from arctic_operator.manifests.common import revision_of
from arctic_operator.manifests.gateway import ROLE as GATEWAY
from arctic_operator.observed import (
    INVALID_SPEC,
    LEADER_WORKER_SET,
    STATEFUL_SET,
    Access,
    Identity,
    Inference,
    InferenceSeen,
    Node,
    Pod,
    Training,
    TrainingSeen,
    Trouble,
    exported_by,
    gateway_pod_of,
    group_set_of,
    identity_of,
    job_of,
    lack_of,
    node_of,
    pod_of,
    read_status,
    revision_seen_of,
)

TRAINING_REVISION = (
    *("model", "tokenizer", "data", "curriculum", "optimizer", "seed", "batch", "parallelism", "checkpoint"),
    *("evaluation", "tracking", "priorityClassName", "image", "resources", "template"),
)
"""What a training's world is made of; the rest of a specification may change under it."""
WORKERS_RESTART = "lossSpike"
"""What of `restart` is the workers' own."""
INFERENCE_REVISION = (
    *("model", "engine", "quantization", "parallelism", "attention", "batching"),
    *("priorityClassName", "resources", "template"),
)
"""What a group is made of."""
GROUP_KINDS = (STATEFUL_SET, LEADER_WORKER_SET)
LOOKED_AT = {
    training_api.KIND: ("Job", "Service", "NetworkPolicy"),
    inference_api.KIND: (
        *GROUP_KINDS,
        "Deployment",
        "Service",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "ControllerRevision",
    ),
}
"""Kinds of children besides pods, which both have."""
REDUCED = frozenset({"Job", "Pod", "ControllerRevision", *GROUP_KINDS})


@dataclass(frozen=True)
class Invalid:
    """A custom resource whose specification can't be carried out, and why."""

    identity: Identity
    generation: int
    deleting: bool
    status: ArcticTrainingStatus | ArcticInferenceStatus
    message: str


Subject = Training | Inference | Invalid


def training_parts(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a training's specification its world is made of."""
    parts = {field: spec.get(field) for field in TRAINING_REVISION}
    # Left out where they are unset, as they were before there were such fields.
    later = {WORKERS_RESTART: spec.get("restart", {}).get(WORKERS_RESTART), "suspendAt": spec.get("suspendAt")}
    return parts | {field: value for field, value in later.items() if value is not None}


class Observer:
    """Reads the cache, and fills it from the API server on demand."""

    def __init__(self, cluster: Cluster, cache: Cache, *, read_nodes: bool, leader_worker_sets: bool = False) -> None:
        self._cluster, self._cache, self._read_nodes = cluster, cache, read_nodes
        self._forbidden = () if leader_worker_sets else (LEADER_WORKER_SET,)
        self._read: dict[str, tuple[int, ArcticTrainingSpec | ArcticInferenceSpec | str]] = {}

    async def look(self, key: Key) -> None:
        """Read an object and all of its children from the API server: what is not there now is gone."""
        known = self._cache.custom(key)
        manifest = await self._cluster.get(*key)
        if known and (manifest is None or manifest["metadata"]["uid"] != known["metadata"]["uid"]):
            self._cache.remove(known)
        if manifest is None:
            return
        self._cache.put(manifest)
        uid = manifest["metadata"]["uid"]
        kinds = [kind for kind in LOOKED_AT[key.kind] if kind not in self._forbidden]
        await asyncio.gather(*(self._look_at_children(kind, key.namespace, uid) for kind in kinds))
        # How a Job ended is judged by pods that are not older; again, if the watch has shown a newer Job meanwhile.
        for _ in range(2):
            pods_as_of = await self._look_at_children("Pod", key.namespace, uid)
            nodes = self._nodes() or {}
            if any(pod.node and pod.node not in nodes for pod in self._pods(uid)):
                await self.look_at_nodes()
            if all(version_of(job) <= pods_as_of for job in self._cache.children(uid, "Job")):
                break

    async def _look_at_children(self, kind: str, namespace: str, uid: str) -> int:
        """Return the version that is known now."""
        listing = await self._cluster.list_children(kind, namespace, uid)
        self._cache.replace_children(uid, kind, listing)
        return listing.version

    async def find_gone(self, namespaces: Iterable[str]) -> set[Key]:
        """Forget what has gone unseen, by a list of each kind; return the objects whose it was."""
        gone: list[Manifest] = []
        for kind in (*CUSTOM_KINDS, *CHILD_KINDS, *({LEADER_WORKER_SET} - set(self._forbidden))):
            for namespace in namespaces:
                gone += self._cache.remove_missing(kind, namespace, await self._cluster.list_present(kind, namespace))
        return {key for key in map(key_of, gone) if key}

    async def look_at_nodes(self) -> None:
        """Read all nodes from the API server, if that is allowed."""
        if self._read_nodes:
            self._cache.replace_all("Node", await self._cluster.list_nodes())

    def subject(self, key: Key) -> Subject | None:
        """Return a custom resource as its type; None if there is none."""
        manifest = self._cache.custom(key)
        if manifest is None:
            return None
        identity, metadata = identity_of(manifest), manifest["metadata"]
        generation, deleting = metadata.get("generation", 0), "deletionTimestamp" in metadata
        created = datetime.fromisoformat(metadata["creationTimestamp"])
        raw = manifest.get("status") or {}
        spec = self._spec(manifest, generation)
        if isinstance(spec, ArcticTrainingSpec):
            revision = revision_of(training_parts(manifest["spec"]))
            before = read_status(ArcticTrainingStatus, raw)
            request = metadata.get("annotations", {}).get(CHECKPOINT_REQUEST, "")
            return Training(identity, generation, created, deleting, revision, spec, before, request)
        if isinstance(spec, ArcticInferenceSpec):
            made_of = {field: manifest["spec"].get(field) for field in INFERENCE_REVISION}
            status = read_status(ArcticInferenceStatus, raw)
            return Inference(identity, generation, created, deleting, revision_of(made_of), spec, status, made_of)
        if key.kind == training_api.KIND:
            return Invalid(identity, generation, deleting, read_status(ArcticTrainingStatus, raw), spec)
        return Invalid(identity, generation, deleting, read_status(ArcticInferenceStatus, raw), spec)

    def _spec(self, manifest: Manifest, generation: int) -> ArcticTrainingSpec | ArcticInferenceSpec | str:
        """Return the specification as its type, or what is wrong with it; read once a generation.

        What was accepted at this generation stays accepted: stricter rules of a newer version are for the next edit.
        """
        uid = manifest["metadata"]["uid"]
        known = self._read.get(uid)
        if known and known[0] == generation:
            return known[1]
        status = manifest.get("status") or {}
        accepted = status.get("observedGeneration") == generation and status.get("state") != INVALID_SPEC
        problems = field_problems(manifest) if accepted else verdict(manifest)
        model = ArcticTrainingSpec if manifest["kind"] == training_api.KIND else ArcticInferenceSpec
        read: Any = "; ".join(map(str, problems)) if problems else model.model_validate(manifest["spec"])
        self._read[uid] = (generation, read)
        return read  # type: ignore[no-any-return]  # one of the three by construction

    def forget(self, uid: str) -> None:
        """Forget an object that is gone."""
        self._read.pop(uid, None)

    def has_starting_pods(self, uid: str) -> bool:
        """Whether a kubelet is about to start pods, for which it needs what they mount."""
        return any(pod.node and pod.phase == "Pending" for pod in self._pods(uid))

    def forget_unwatched(self, uid: str) -> None:
        """Forget what nobody may list: it is written anew, whether it is there or not."""
        for kind in ("ConfigMap", "Secret"):
            self._cache.forget_children(uid, kind)

    def training_seen(
        self,
        training: Training,
        live: Live | None,
        refusals: Mapping[str, str],
        answer: CheckpointRequest | None = None,
    ) -> TrainingSeen:
        """Return all that is known about a training."""
        uid, source = training.identity.uid, training.spec.model.from_
        named = source.training if source else None
        jobs = [job_of(child) for child in self._owned(uid, "Job")]
        # What has begun goes on from the weights that it began with, whatever the named training exports now.
        begun = bool(jobs or training.status.attempt)
        base, lack = self._base(training.identity.namespace, named, training.status.weights, keep=begun)
        return TrainingSeen(
            jobs=jobs,
            pods=[pod for pod in self._pods(uid) if pod.attempt is not None],
            nodes=self._nodes(),
            live=live,
            base=base,
            lack=lack,
            refusals=refusals,
            answer=answer,
            others=self._others(uid),
        )

    def inference_seen(
        self,
        inference: Inference,
        live: Callable[[str], Live | None],
        refusals: Mapping[str, str],
        access: Access | None = None,
        held: int | None = None,
    ) -> InferenceSeen:
        """Return all that is known about a service; `access` is who may use it, `held` how many wait in its gateway."""
        uid = inference.identity.uid
        groups = [group_set_of(child) for kind in GROUP_KINDS for child in self._owned(uid, kind)]
        known = {group.name: seen for group in groups if (seen := live(group.name))}
        named = inference.spec.model.training
        base, lack = self._base(inference.identity.namespace, named, inference.status.weights, keep=False)
        return InferenceSeen(
            groups=groups,
            pods=[pod for pod in self._pods(uid) if pod.group is not None],
            nodes=self._nodes(),
            live=known,
            history=[revision_seen_of(child) for child in self._owned(uid, "ControllerRevision")],
            access=access,
            gateways=[gateway_pod_of(child) for child in self._cache.children(uid, "Pod") if _is_gateway(child)],
            held=held,
            base=base,
            lack=lack,
            refusals=refusals,
            others=self._others(uid),
        )

    def known(self, manifest: Manifest, owner: str) -> Manifest | None:
        """Return a child as it was seen last."""
        name = manifest["metadata"]["name"]
        children = self._cache.children(owner, manifest["kind"])
        return next((child for child in children if child["metadata"]["name"] == name), None)

    def waiting_for(self, key: Key) -> Iterable[Key]:
        """Return the objects that use a training's weights."""
        for other, manifest in self._cache.customs():
            model = manifest["spec"].get("model", {})
            names = (model.get("training"), (model.get("from") or {}).get("training"))
            if other.namespace == key.namespace and key.name in names:
                yield other

    def _owned(self, owner: str, kind: str) -> Iterable[Manifest]:
        """Return the children that the owner itself owns: a label alone makes nobody a child."""
        for child in self._cache.children(owner, kind):
            if any(reference["uid"] == owner for reference in child["metadata"].get("ownerReferences") or ()):
                yield child

    def _pods(self, uid: str) -> Iterable[Pod]:
        return map(pod_of, self._cache.children(uid, "Pod"))

    def _others(self, uid: str) -> list[Manifest]:
        return [child for kind in CHILD_KINDS if kind not in REDUCED for child in self._owned(uid, kind)]

    def _nodes(self) -> dict[str, Node] | None:
        if not self._read_nodes:
            return None
        return {node.name: node for node in map(node_of, self._cache.all("Node"))}

    def _base(
        self, namespace: str, name: str | None, before: BaseWeights | None, *, keep: bool
    ) -> tuple[BaseWeights | None, Trouble | None]:
        """Return the weights of a training that is named, or why it has none. Weights outlive their training.

        `keep` prefers those that were used before to those that it has exported since.
        """
        if name is None:
            return None, None
        manifest = self._cache.custom(Key(training_api.KIND, namespace, name))
        known = before if before and before.training == name else None
        newest = exported_by(manifest) if manifest else None
        found = (known or newest) if keep else (newest or known)
        return found, None if found else lack_of(manifest, namespace, name)


def _is_gateway(pod: Manifest) -> bool:
    metadata = pod["metadata"]
    return metadata["labels"].get(Label.ROLE) == GATEWAY and "deletionTimestamp" not in metadata
