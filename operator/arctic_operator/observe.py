"""From what the watches have shown to what planning reads; where that is not enough, from the API server itself."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from operator import is_
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from arctic_ablation.faults import fault
from arctic_ablation.study import VariantStudy
from arctic_api import ablation as ablation_api
from arctic_api import evaluation as evaluation_api
from arctic_api import inference as inference_api
from arctic_api import training as training_api
from arctic_api.ablation import ArcticAblationSpec, ArcticAblationStatus
from arctic_api.common import BaseWeights
from arctic_api.evaluation import ArcticEvaluationSpec, ArcticEvaluationStatus
from arctic_api.inference import ArcticInferenceSpec, ArcticInferenceStatus
from arctic_api.training import ArcticTrainingSpec, ArcticTrainingStatus, CheckpointRequest
from arctic_api.verdict import field_problems, verdict
from arctic_api.world import CHECKPOINT_REQUEST, DRAIN_REQUEST, Label
from arctic_operator.cache import CUSTOM_KINDS, Cache, Key, Manifest, key_of, version_of
from arctic_operator.cluster import CHILD_KINDS, ApiError, Cluster
from arctic_operator.evaluations import Evaluation, EvaluationSeen, compared_with, judged_of, target_of
from arctic_operator.live import Live
from arctic_operator.manifests.common import revision_of
from arctic_operator.manifests.gateway import ROLE as GATEWAY
from arctic_operator.observed import (
    ENDED,
    INVALID_SPEC,
    LEADER_WORKER_SET,
    STATEFUL_SET,
    Access,
    Identity,
    Inference,
    InferenceSeen,
    Node,
    Pod,
    Rival,
    Training,
    TrainingSeen,
    Trouble,
    exported_by,
    gateway_down_of,
    gateway_pod_of,
    group_set_of,
    identity_of,
    is_silent,
    job_of,
    lack_of,
    node_of,
    pod_of,
    read_status,
    revision_seen_of,
)
from arctic_operator.rivals import gave_way, holds_and_waits, needs_of, worlds_of
from arctic_operator.trials import Ablation, AblationSeen, judgement_of, trial_of

if TYPE_CHECKING:
    from arctic_ablation.swarm.study import SwarmStudy

log = logging.getLogger(__name__)

Spec = ArcticTrainingSpec | ArcticInferenceSpec | ArcticAblationSpec | ArcticEvaluationSpec
Status = ArcticTrainingStatus | ArcticInferenceStatus | ArcticAblationStatus | ArcticEvaluationStatus
SPECS: dict[str, type[Spec]] = {
    training_api.KIND: ArcticTrainingSpec,
    inference_api.KIND: ArcticInferenceSpec,
    ablation_api.KIND: ArcticAblationSpec,
    evaluation_api.KIND: ArcticEvaluationSpec,
}
STATUSES: dict[str, type[Status]] = {
    training_api.KIND: ArcticTrainingStatus,
    inference_api.KIND: ArcticInferenceStatus,
    ablation_api.KIND: ArcticAblationStatus,
    evaluation_api.KIND: ArcticEvaluationStatus,
}
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
BEHIND_SECONDS = 10.0
"""What a watch has not shown after so long it has missed."""
RIVALS_EVERY = 1.0
"""Seconds for which what is known of worlds that wait for nodes is taken for new."""
SUBJECTS = 512
"""Custom resources that are kept as their types: those that were visited last, as each takes some 30 KB."""
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
    ablation_api.KIND: (training_api.KIND, evaluation_api.KIND, "Job", "NetworkPolicy"),
    evaluation_api.KIND: ("Job", "NetworkPolicy"),
}
"""Kinds of children besides pods; evaluations of a training are made again at most, as they are."""
REDUCED = frozenset({"Job", "Pod", "ControllerRevision", *GROUP_KINDS})


@dataclass(frozen=True)
class Invalid:
    """A custom resource whose specification can't be carried out, and why."""

    identity: Identity
    generation: int
    deleting: bool
    status: Status
    message: str


Subject = Training | Inference | Ablation | Evaluation | Invalid


def training_parts(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a training's specification its world is made of."""
    parts = {field: spec.get(field) for field in TRAINING_REVISION}
    parts["evaluation"] = _own_evaluation(spec.get("evaluation"))
    # Left out where they are unset, as they were before there were such fields, or say what was so then.
    precision = spec.get("precision")
    later = {
        WORKERS_RESTART: spec.get("restart", {}).get(WORKERS_RESTART),
        "suspendAt": spec.get("suspendAt"),
        "precision": None if precision == "bf16" else precision,
    }
    return parts | {field: value for field, value in later.items() if value is not None}


def _own_evaluation(evaluation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what of its evaluation a world does itself: no edit of what is run beside it disturbs it."""
    own = [suite for suite in (evaluation or {}).get("suites", ()) if suite in training_api.OWN_SUITES]
    if evaluation is None or not own:
        return None
    return {name: value for name, value in evaluation.items() if name not in ("data", "resources")} | {"suites": own}


def _study_of(name: str, spec: ArcticAblationSpec) -> "VariantStudy | SwarmStudy":
    """Return the study of an ablation; a swarm's is told what it foretells."""
    if spec.mixture is None:
        return VariantStudy(name, spec)
    from arctic_ablation.swarm.study import SwarmStudy  # only here: numpy takes memory

    return SwarmStudy(name, spec, told={})


@dataclass(frozen=True)
class _Read:
    """A custom resource of one version, as its type."""

    manifest: Manifest
    generation: int
    spec: Spec | str
    """As its type, or what is wrong with it; the same for all versions of a generation."""
    subject: Subject


class Observer:
    """Reads the cache, and fills it from the API server on demand."""

    def __init__(self, cluster: Cluster, cache: Cache, *, read_nodes: bool, leader_worker_sets: bool = False) -> None:
        self._cluster, self._cache, self._read_nodes = cluster, cache, read_nodes
        self._forbidden = () if leader_worker_sets else (LEADER_WORKER_SET,)
        self._nodes_seen: tuple[list[Manifest], dict[str, Node]] = ([], {})
        self._waiting: tuple[Sequence[tuple[str, Rival]], float] = ((), float("-inf"))
        self._subjects: OrderedDict[str, _Read] = OrderedDict()
        self._studies: dict[str, tuple[int, VariantStudy | SwarmStudy]] = {}

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
            nodes = self._nodes()
            if any(is_silent(pod, nodes) for pod in self._pods(uid)):
                await self.look_at_nodes()  # after the API server was away, its watch may be half a minute behind
            if all(version_of(job) <= pods_as_of for job in self._cache.children(uid, "Job")):
                break

    async def _look_at_children(self, kind: str, namespace: str, uid: str) -> int:
        """Return the version that is known now."""
        listing = await self._cluster.list_children(kind, namespace, uid)
        self._cache.replace_children(uid, kind, listing)
        return listing.version

    async def find_missed(self, namespaces: Iterable[str]) -> AsyncIterator[Key]:
        """Find by a list of each kind what no watch has shown, and take it in; yields the objects whose it is.

        A connection may be dead and not know it, and then its watch shows nothing, for as long as nobody ends it.
        """
        newer: list[Manifest] = []
        for kind in (*CUSTOM_KINDS, *CHILD_KINDS, *({LEADER_WORKER_SET} - set(self._forbidden))):
            for namespace in namespaces:
                try:
                    listing = await self._cluster.list_present(kind, namespace)
                except ApiError as error:  # which says nothing of other kinds and namespaces
                    log.warning("%s of %s can't be listed: %s", kind, namespace or "all namespaces", error)
                    continue
                for manifest in self._cache.remove_missing(kind, namespace, listing):
                    if key := key_of(manifest):
                        yield key  # at once: what is removed will not be missed again, should a later list fail
                named = [{"kind": kind, "metadata": item["metadata"]} for item in listing.items]
                newer += filter(self._cache.is_behind, named)
        if newer:
            await asyncio.sleep(BEHIND_SECONDS)
        missed = {key for key in map(key_of, filter(self._cache.is_behind, newer)) if key}
        for key in missed:
            try:
                await self.look(key)
            except ApiError as error:
                log.warning("%s %s/%s was missed and can't be read: %s", *key, error)
            else:
                yield key

    async def look_at_nodes(self) -> None:
        """Read all nodes from the API server, if that is allowed."""
        if self._read_nodes:
            self._cache.replace_all("Node", await self._cluster.list_nodes())

    def subject(self, key: Key) -> Subject | None:
        """Return a custom resource as its type, read once a version if it is visited often; None if there is none."""
        manifest = self._cache.custom(key)
        if manifest is None:
            return None
        uid = manifest["metadata"]["uid"]
        known = self._subjects.get(uid)
        if known is None or known.manifest is not manifest:
            generation = manifest["metadata"].get("generation", 0)
            spec = known.spec if known and known.generation == generation else self._spec(manifest, generation)
            known = self._subjects[uid] = _Read(manifest, generation, spec, self._subject(key, manifest, spec))
        self._subjects.move_to_end(uid)
        if len(self._subjects) > SUBJECTS:
            self._subjects.popitem(last=False)
        return known.subject

    def _subject(self, key: Key, manifest: Manifest, spec: Spec | str) -> Subject:
        identity, metadata = identity_of(manifest), manifest["metadata"]
        generation, deleting = metadata.get("generation", 0), "deletionTimestamp" in metadata
        created = datetime.fromisoformat(metadata["creationTimestamp"])
        raw = manifest.get("status") or {}
        annotations = metadata.get("annotations", {})
        if isinstance(spec, ArcticTrainingSpec):
            revision = revision_of(training_parts(manifest["spec"]))
            before = read_status(ArcticTrainingStatus, raw)
            request = annotations.get(CHECKPOINT_REQUEST, "")
            return Training(identity, generation, created, deleting, revision, spec, before, request)
        if isinstance(spec, ArcticInferenceSpec):
            made_of = {field: manifest["spec"].get(field) for field in INFERENCE_REVISION}
            status = read_status(ArcticInferenceStatus, raw)
            revision, request = revision_of(made_of), annotations.get(DRAIN_REQUEST, "")
            return Inference(identity, generation, created, deleting, revision, spec, status, made_of, request)
        if isinstance(spec, ArcticAblationSpec):
            found = read_status(ArcticAblationStatus, raw)
            study = self._study(identity, generation, spec)
            if not isinstance(study, VariantStudy):
                study.hear({each.name: each.mixtures for each in found.foretold or () if each.digest == study.digest})
            return Ablation(identity, generation, deleting, study, found)
        if isinstance(spec, ArcticEvaluationSpec):
            asked = read_status(ArcticEvaluationStatus, raw)
            return Evaluation(identity, generation, deleting, revision_of(manifest["spec"]), spec, asked)
        return Invalid(identity, generation, deleting, read_status(STATUSES[key.kind], raw), spec)

    def _study(self, identity: Identity, generation: int, spec: ArcticAblationSpec) -> "VariantStudy | SwarmStudy":
        """Return the study of an ablation, made once a generation: it keeps the specification of each training."""
        known = self._studies.get(identity.uid)
        if known is None or known[0] != generation:
            known = self._studies[identity.uid] = (generation, _study_of(identity.name, spec))
        return known[1]

    def _spec(self, manifest: Manifest, generation: int) -> Spec | str:
        """Return the specification as its type, or what is wrong with it.

        What was accepted at this generation stays accepted: stricter rules of a newer version are for the next edit.
        """
        status = manifest.get("status") or {}
        accepted = status.get("observedGeneration") == generation and status.get("state") != INVALID_SPEC
        model = SPECS[manifest["kind"]]
        if accepted:  # at most visits of most objects: to say what is wrong takes six times as long
            with suppress(ValidationError):
                return model.model_validate(manifest["spec"])
        problems = field_problems(manifest) if accepted else verdict(manifest)
        read: Any = "; ".join(map(str, problems)) if problems else model.model_validate(manifest["spec"])
        if isinstance(read, ArcticAblationSpec) and not accepted:
            read = fault(self._study(identity_of(manifest), generation, read)) or read
        return read  # type: ignore[no-any-return]  # one of them by construction

    def forget(self, uid: str) -> None:
        """Forget an object that is gone."""
        self._subjects.pop(uid, None)
        self._studies.pop(uid, None)

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
        pods = [pod for pod in self._pods(uid) if pod.attempt is not None]
        rivals = gave_way(training.status) or any(pod.unschedulable for pod in pods)
        return TrainingSeen(
            jobs=jobs,
            pods=pods,
            nodes=self._nodes(),
            live=live,
            base=base,
            lack=lack,
            refusals=refusals,
            answer=answer,
            rivals=self._rivals(training.identity) if rivals else (),
            judged=[judged_of(child) for child in self._owned(uid, evaluation_api.KIND)],
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
        gateways = [child for child in self._cache.children(uid, "Pod") if _is_gateway(child)]
        down = (gateway_down_of(child, map(pod_of, gateways)) for child in self._owned(uid, "Deployment"))
        return InferenceSeen(
            groups=groups,
            pods=[pod for pod in self._pods(uid) if pod.group is not None],
            nodes=self._nodes(),
            live=known,
            history=[revision_seen_of(child) for child in self._owned(uid, "ControllerRevision")],
            access=access,
            gateways=[gateway_pod_of(child) for child in gateways],
            gateway_down=next(down, None),
            held=held,
            base=base,
            lack=lack,
            refusals=refusals,
            others=self._others(uid),
        )

    def ablation_seen(self, ablation: Ablation, refusals: Mapping[str, str]) -> AblationSeen:
        """Return all that is known about the trainings of an ablation, and of the one that it reuses."""
        uid = ablation.identity.uid
        trials = [trial_of(child) for child in self._owned(uid, training_api.KIND)]
        judgements = [judgement_of(child) for child in self._owned(uid, evaluation_api.KIND)]
        reuse = ablation.spec.reuse
        earlier = self._cache.custom(Key(ablation_api.KIND, ablation.identity.namespace, reuse)) if reuse else None
        return AblationSeen(
            trials={trial.name: trial for trial in trials},
            judgements={each.name: each for each in judgements},
            earlier=read_status(ArcticAblationStatus, (earlier or {}).get("status") or {}),
            jobs=[job_of(child) for child in self._owned(uid, "Job")],
            pods=list(self._pods(uid)),
            nodes=self._nodes(),
            refusals=refusals,
        )

    def evaluation_seen(self, evaluation: Evaluation, live: Live | None, refusals: Mapping[str, str]) -> EvaluationSeen:
        """Return all that is known about an evaluation, and about what it evaluates."""
        model, identity = evaluation.spec.model, evaluation.identity

        def named(kind: str, name: str | None) -> Manifest | None:
            return self._cache.custom(Key(kind, identity.namespace, name)) if name else None

        training, service = named(training_api.KIND, model.training), named(inference_api.KIND, model.service)
        others = {name: named(evaluation_api.KIND, name) for name in evaluation.spec.compare or ()}
        return EvaluationSeen(
            target=target_of(evaluation, training, service),
            compared=compared_with(evaluation, others),
            jobs=[job_of(child) for child in self._owned(identity.uid, "Job")],
            pods=list(self._pods(identity.uid)),
            nodes=self._nodes(),
            live=live,
            refusals=refusals,
        )

    def known(self, manifest: Manifest, owner: str) -> Manifest | None:
        """Return a child as it was seen last."""
        name = manifest["metadata"]["name"]
        children = self._cache.children(owner, manifest["kind"])
        return next((child for child in children if child["metadata"]["name"] == name), None)

    def _owned(self, owner: str, kind: str) -> Iterable[Manifest]:
        """Return the children that the owner itself owns: a label alone makes nobody a child."""
        for child in self._cache.children(owner, kind):
            if any(reference["uid"] == owner for reference in child["metadata"].get("ownerReferences") or ()):
                yield child

    def _pods(self, uid: str) -> Iterable[Pod]:
        """Return the pods that a controller has made: nobody's own pod is a worker, whatever its labels say."""
        return (pod for pod in map(pod_of, self._cache.children(uid, "Pod")) if pod.owner)

    def _others(self, uid: str) -> list[Manifest]:
        return [child for kind in CHILD_KINDS if kind not in REDUCED for child in self._owned(uid, kind)]

    def _rivals(self, identity: Identity) -> list[Rival]:
        """Return who else waits for such nodes, found by going through all pods: at most once in a while."""
        waiting, at = self._waiting
        if time.monotonic() - at >= RIVALS_EVERY:
            waiting = list(self._find_waiting(self._cluster.clock.now()))
            self._waiting = waiting, time.monotonic()
        manifest = self._cache.custom(Key(identity.kind, identity.namespace, identity.name))
        needs = needs_of(manifest["spec"]) if manifest else ""
        return [rival for asked, rival in waiting if asked == needs and rival.identity.uid != identity.uid]

    def _find_waiting(self, now: datetime) -> Iterator[tuple[str, Rival]]:
        for key, manifest in self._cache.customs():
            identity, created = identity_of(manifest), datetime.fromisoformat(manifest["metadata"]["creationTimestamp"])
            if any(holds_and_waits(world, now) for world in worlds_of(list(self._pods(identity.uid)))):
                yield needs_of(manifest["spec"]), Rival(identity, created, holds=True)
            elif key.kind == training_api.KIND and _waits(manifest):
                yield needs_of(manifest["spec"]), Rival(identity, created, holds=False)

    def _nodes(self) -> Mapping[str, Node] | None:
        """Return all nodes by name, the same ones until one changes."""
        if not self._read_nodes:
            return None
        manifests = list(self._cache.all("Node"))
        seen, nodes = self._nodes_seen
        if len(seen) != len(manifests) or not all(map(is_, seen, manifests)):
            nodes = {node.name: node for node in map(node_of, manifests)}
            self._nodes_seen = manifests, nodes
        return nodes

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


def _waits(training: Manifest) -> bool:
    """Whether a training that gave its nodes back wants some still."""
    status = training.get("status") or {}
    wanted = not training["spec"].get("suspend") and "deletionTimestamp" not in training["metadata"]
    return wanted and status.get("state") == "WaitingForNodes"


def _is_gateway(pod: Manifest) -> bool:
    """Whether a pod is a gateway that may answer: one that has ended, as when it is evicted, keeps its address."""
    metadata, ended = pod["metadata"], pod.get("status", {}).get("phase") in ENDED
    return metadata["labels"].get(Label.ROLE) == GATEWAY and not ended and "deletionTimestamp" not in metadata
