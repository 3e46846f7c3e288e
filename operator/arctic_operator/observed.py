"""What is read from the cluster, reduced to what planning needs: frozen values, and pure functions that make them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from pydantic import ValidationError

from arctic_api.common import BaseWeights, Resource
from arctic_api.inference import ArcticInferenceSpec, ArcticInferenceStatus
from arctic_api.training import KIND as TRAINING_KIND
from arctic_api.training import ArcticTrainingSpec, ArcticTrainingStatus, CheckpointRequest
from arctic_api.uris import path_of
from arctic_api.world import Label, Routing, revision_in
from arctic_operator.live import Live

Manifest = Mapping[str, Any]
S = TypeVar("S", bound=Resource)

BEYOND = 1e15
"""More than any number that this operator writes, of attempts, generations, pods, hours or dollars."""
REVISION_ANNOTATION = "arctic.dev/revision"
GENERATION_ANNOTATION = "arctic.dev/generation"
GPU_HOURS_ANNOTATION = "arctic.dev/gpu-hours-before"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
DRAINING_ANNOTATION = "arctic.dev/draining-since"
WEIGHTS_ANNOTATION = "arctic.dev/weights"
SIZE_ANNOTATION = "arctic.dev/size"
"""Number of pods that a group's set was made for: somebody may scale it."""
READ_ANNOTATION = "arctic.dev/read"
"""Says of a gateway's pod what it should have read: the kubelet brings the files of a pod up to date that changes."""
HISTORY = "history"
"""Role of the records of revisions."""
WORKER_CONTAINER = "worker"
"""The container of ours in a worker's pod, whose exit code says how the worker ended."""
POD_INDEX_LABEL = "apps.kubernetes.io/pod-index"
"""A pod's ordinal in its StatefulSet: the node rank in a LeaderWorkerSet too, which numbers workers from 1."""
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
EMPTYING_TAINTS = frozenset(
    {
        "karpenter.sh/disrupted",
        "karpenter.sh/disruption",  # before Karpenter 1.0
        "ToBeDeletedByClusterAutoscaler",
        "cloud.google.com/impending-node-termination",  # GKE, ahead of a host's maintenance
    }
)
"""Keys of the taints of nodes that are emptied and then taken away: who sets them need not cordon the node."""
STATEFUL_SET, LEADER_WORKER_SET = "StatefulSet", "LeaderWorkerSet"
ENDED = ("Succeeded", "Failed")
"""Phases of a pod that will not run again."""
INVALID_SPEC = "InvalidSpec"
"""State, and reason of the conditions, of an object whose specification can't be carried out."""

NO_KEYS = "NoKeys"
"""State of a service that nobody may use, and reason of that trouble."""
NO_GATEWAY = "NoGateway"
"""State of a service that nobody reaches, and reason of that trouble."""


@dataclass(frozen=True)
class Identity:
    """Which custom resource: what every child's name, labels and owner are derived from."""

    kind: str
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True)
class Training:
    """An ArcticTraining whose specification could be read."""

    identity: Identity
    generation: int
    created: datetime
    deleting: bool
    revision: str
    spec: ArcticTrainingSpec
    status: ArcticTrainingStatus
    checkpoint_request: str = ""
    """Value of the annotation that asks for a checkpoint."""


@dataclass(frozen=True)
class Inference:
    """An ArcticInference whose specification could be read."""

    identity: Identity
    generation: int
    created: datetime
    deleting: bool
    revision: str
    spec: ArcticInferenceSpec
    status: ArcticInferenceStatus
    made_of: Mapping[str, Any] = field(default_factory=dict)
    """The fields of the specification, as stored, that a group is made of; what is unset is None."""
    drain_request: str = ""
    """Value of the annotation that asks a group to go."""


@dataclass(frozen=True)
class Job:
    """The Job of one attempt of a training, or of an evaluation."""

    name: str
    uid: str
    attempt: int
    """0 for an evaluation's."""
    generation: int
    revision: str
    deleting: bool = False
    complete: bool = False
    failing: datetime | None = None
    """Since when it ends its pods, as one of them has failed. Kubernetes calls it failed once they all have ended, and
    before 1.31 at once: then this is None."""
    failed: bool = False
    reason: str = ""
    message: str = ""
    created: datetime | None = None
    ended: datetime | None = None
    gpu_hours_before: float = 0.0
    suspended: bool = False
    """Whether it has no pods, or is losing them: it waits for its queue, or the queue has taken its nodes back."""
    queue: str = ""
    """Kueue's LocalQueue that decides on that."""


@dataclass(frozen=True)
class GroupSet:
    """What holds the pods of one inference group: a StatefulSet or a LeaderWorkerSet, as `kind` says."""

    kind: str
    name: str
    uid: str
    generation: int
    revision: str
    size: int
    """Number of pods that it was made for."""
    specification: str
    """Revision of the specification that it is known to agree with."""
    created: datetime
    weights: str = ""
    """Folder of the exported weights that it was made with."""
    deleting: bool = False
    draining_since: datetime | None = None
    scaled: bool = False
    """Whether it has other `replicas` than it was made with."""

    @property
    def replicas(self) -> int:
        """What it was made with: pods of a StatefulSet, groups of a LeaderWorkerSet."""
        return 1 if self.kind == LEADER_WORKER_SET else self.size

    @property
    def makers(self) -> tuple[str, ...]:
        """Names of the StatefulSets that make the pods for a LeaderWorkerSet: the leader's, then the workers'."""
        return (self.name, f"{self.name}-0")[: self.size] if self.kind == LEADER_WORKER_SET else ()


@dataclass(frozen=True)
class Revision:
    """An earlier specification of a service, or the present one, as it was recorded."""

    name: str
    object_name: str
    uid: str
    specification: str
    """Its revision as the operator that recorded it computed it."""
    generation: int
    """The service's generation at that time."""
    created: datetime
    made_of: Mapping[str, Any]
    """As in `Inference`."""
    weights: BaseWeights | None = None
    """Weights of the training that it names."""


@dataclass(frozen=True)
class Owner:
    """The controller that has made an object."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True)
class Trouble:
    """What keeps a world from running: a condition's reason and message."""

    reason: str
    message: str


@dataclass(frozen=True)
class Access:
    """Who may use a service that asks for a key."""

    digests: tuple[str, ...] = ()
    """Of the keys that are accepted, in hex and in order."""
    lack: Trouble | None = None
    """What is wrong with the Secret that they are in."""


@dataclass(frozen=True)
class GatewayPod:
    """A pod of the gateway."""

    name: str
    uid: str
    told: str
    """What it was told last to read anew."""
    ip: str = ""


@dataclass(frozen=True)
class GatewayDown:
    """A gateway of which no pod is ready."""

    since: datetime
    """Since when it has too few."""
    why: str
    """In the cluster's words, empty where it says nothing."""


@dataclass(frozen=True)
class Pod:
    """A worker's pod. Times that do not apply are None.

    The phase is the cluster's, but for a worker that has ended for good: its end decides, whatever others may have put
    beside it in the pod.
    """

    name: str
    uid: str
    index: int
    phase: str
    created: datetime
    attempt: int | None = None
    group: str | None = None
    owner: Owner | None = None
    node: str = ""
    ip: str = ""
    ready_since: datetime | None = None
    routing: Routing = Routing.ON
    delete_requested: datetime | None = None
    grace_seconds: int = 0
    """What a pod that is being deleted gets to end."""
    disrupted: datetime | None = None
    disruption: str = ""
    disruption_message: str = ""
    """The cluster's own words on the disruption."""
    failure: str = ""
    """Reason of a pod that the cluster itself has made fail, as `Evicted`."""
    failure_message: str = ""
    exit_code: int | None = None
    exit_reason: str = ""
    exit_message: str = ""
    started: datetime | None = None
    finished: datetime | None = None
    container_restarts: int = 0
    waiting: str = ""
    waiting_message: str = ""
    unschedulable: str = ""
    beside: Trouble | None = None
    """Why a container beside the worker's does not run, or began anew."""
    unexplained: bool = False
    """Whether its worker has ended for good and the cluster has not said so of the pod yet, nor why."""
    lingers: bool = False
    """Whether containers beside the worker's still run, though that one has ended for good."""
    memory_limit: str = ""
    """Of the worker's container, as its manifest has it."""

    @property
    def ended(self) -> bool:
        """Whether its worker will not run again."""
        return self.phase in ENDED


@dataclass(frozen=True)
class Node:
    """A node, as far as worlds care."""

    name: str
    ready: bool
    ready_changed: datetime | None
    to_be_emptied: bool


def is_silent(pod: Pod, nodes: Mapping[str, Node] | None) -> bool:
    """Whether a pod's node is not ready, or is gone, for however short a time."""
    node = nodes.get(pod.node) if nodes is not None and pod.node else None
    return nodes is not None and bool(pod.node) and (node is None or not node.ready)


@dataclass(frozen=True)
class Rival:
    """Another object's world that wants nodes."""

    identity: Identity
    created: datetime
    """When the object was made."""
    holds: bool
    """Whether it holds nodes, rather than having given them back."""

    @property
    def order(self) -> tuple[bool, datetime, str]:
        """Who goes first: groups of services, which give nothing back, then trainings by their age."""
        return self.identity.kind == TRAINING_KIND, self.created, self.identity.uid


@dataclass(frozen=True)
class Judged:
    """An evaluation that is made beside a training."""

    name: str
    figures: Mapping[str, str] = field(default_factory=dict)
    """What it found, by suite and figure, of the suites that are done."""
    ended: bool = False
    """Whether it has said all that it will say."""


@dataclass(frozen=True)
class TrainingSeen:
    """Everything that is known about one training at one moment. `nodes` is None where nodes may not be read."""

    jobs: Sequence[Job] = ()
    pods: Sequence[Pod] = ()
    nodes: Mapping[str, Node] | None = None
    live: Live | None = None
    base: BaseWeights | None = None
    """Weights of the training that the specification names: those that this one began with, before it the newest."""
    lack: Trouble | None = None
    """Why there are no such weights, and will be none of themselves."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Why children have too few pods, by their names, where that was asked for."""
    answer: CheckpointRequest | None = None
    """The checkpoint that a request of this operator's has brought last."""
    rivals: Sequence[Rival] = ()
    """Worlds of other objects that hold nodes and wait for more, where it matters: while this one does, or did."""
    judged: Sequence[Judged] = ()
    """Evaluations of its stages."""
    others: Sequence[Manifest] = ()
    """Children of other kinds, whole."""


@dataclass(frozen=True)
class InferenceSeen:
    """Everything that is known about one inference at one moment. `live` is by group name."""

    groups: Sequence[GroupSet] = ()
    pods: Sequence[Pod] = ()
    nodes: Mapping[str, Node] | None = None
    live: Mapping[str, Live] = field(default_factory=dict)
    base: BaseWeights | None = None
    """Weights of the training that the specification names, as it has them now or had them while it was there."""
    lack: Trouble | None = None
    """Why there are no such weights, and will be none of themselves."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Why children have too few pods, by their names, where that was asked for."""
    history: Sequence[Revision] = ()
    """Revisions that can be gone back to."""
    access: Access | None = None
    """Who may use the service, None where it asks for no key."""
    gateways: Sequence[GatewayPod] = ()
    gateway_down: GatewayDown | None = None
    """None while a pod of the gateway is ready, or nothing is said of them."""
    held: int | None = None
    """Requests that wait in the gateway; None where that is not asked, or not answered."""
    others: Sequence[Manifest] = ()
    """Children of other kinds, whole."""


def parse_time(text: str | None) -> datetime | None:
    """Return the moment that an RFC 3339 text means; None for none, and for what somebody made of it."""
    try:
        moment = datetime.fromisoformat(text.upper()) if text else None
    except ValueError:
        return None
    return moment if moment and moment.tzinfo else None


def figure_of(text: str) -> float | None:
    """Return a figure that a status tells; None for what is none, as a status is anybody's to edit who may."""
    try:
        figure = float(text)
    except ValueError:
        return None
    return figure if math.isfinite(figure) else None


def number_of(text: str | None) -> float:
    """Return a number that this operator wrote; 0 for none, or for what somebody made of it."""
    number = figure_of(text or "0")
    return number if number is not None and 0 <= number < BEYOND else 0.0


def noted_number(notes: Mapping[str, str], name: str) -> float:
    """Return a number that this operator noted on a child; 0 where there is none, or somebody made no number of it.

    Annotations and labels are anybody's to edit, and one child's must not end the planning of an object.
    """
    return number_of(notes.get(name))


def format_time(moment: datetime) -> str:
    """Return RFC 3339 in UTC with whole seconds, as Kubernetes writes times."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def identity_of(manifest: Manifest) -> Identity:
    """Return which custom resource a manifest is."""
    metadata = manifest["metadata"]
    return Identity(manifest["kind"], metadata["namespace"], metadata["name"], metadata["uid"])


def conditions_of(manifest: Manifest) -> dict[str, Mapping[str, str]]:
    """Return a manifest's status conditions by type."""
    return {condition["type"]: condition for condition in manifest.get("status", {}).get("conditions") or ()}


def read_status(kind: type[S], raw: Manifest) -> S:
    """Return a status; fields that another version wrote and this one can't read are left out."""
    try:
        return kind.model_validate(raw)
    except ValidationError:
        return kind.model_validate({name: value for name, value in raw.items() if _accepts(kind, name, value)})


def _accepts(kind: type[Resource], name: str, value: object) -> bool:
    try:
        kind.model_validate({name: value})
    except ValidationError:
        return False
    return True


def job_of(manifest: Manifest) -> Job:
    """Reduce a Job."""
    metadata, conditions = manifest["metadata"], conditions_of(manifest)
    annotations = metadata.get("annotations", {})
    failed = conditions.get("Failed", {}).get("status") == "True"
    end = conditions.get("Failed" if failed else "Complete", {})
    target = conditions.get("FailureTarget", {})
    return Job(
        name=metadata["name"],
        uid=metadata["uid"],
        attempt=attempt_of(manifest) or 0,
        generation=int(noted_number(annotations, GENERATION_ANNOTATION)),
        revision=annotations.get(REVISION_ANNOTATION, ""),
        deleting="deletionTimestamp" in metadata,
        complete=conditions.get("Complete", {}).get("status") == "True",
        failing=parse_time(target.get("lastTransitionTime")) if target.get("status") == "True" else None,
        failed=failed,
        reason=end.get("reason", ""),
        message=end.get("message", ""),
        created=parse_time(metadata.get("creationTimestamp")),
        ended=parse_time(end.get("lastTransitionTime")),
        gpu_hours_before=noted_number(annotations, GPU_HOURS_ANNOTATION),
        suspended=bool(manifest["spec"].get("suspend")),
        queue=metadata["labels"].get(QUEUE_LABEL, ""),
    )


def attempt_of(manifest: Manifest) -> int | None:
    """Return the attempt that a child is of, None if it is of none."""
    labels = manifest["metadata"].get("labels", {})
    return int(noted_number(labels, Label.ATTEMPT)) if Label.ATTEMPT in labels else None


def is_news(before: Manifest, after: Manifest) -> bool:
    """Whether anything that is read of a Job, a pod or a node is another than before; of other kinds all is read."""
    if after["kind"] == "Job":
        return job_of(before) != job_of(after)
    if after["kind"] == "Node":
        return node_of(before) != node_of(after)
    if after["kind"] != "Pod":
        return True
    # What is read of a gateway's pods is in its annotations.
    told = (manifest["metadata"].get("annotations") for manifest in (before, after))
    return next(told) != next(told) or pod_of(before) != pod_of(after)


def is_pending(manifest: Manifest) -> bool:
    """Whether a pod does not run yet, and is not being deleted."""
    return manifest.get("status", {}).get("phase") == "Pending" and "deletionTimestamp" not in manifest["metadata"]


def group_set_of(manifest: Manifest) -> GroupSet:
    """Reduce the StatefulSet or LeaderWorkerSet of a group."""
    kind, metadata, spec = manifest["kind"], manifest["metadata"], manifest["spec"]
    annotations = metadata.get("annotations", {})
    if kind == LEADER_WORKER_SET:
        size = spec["leaderWorkerTemplate"]["size"]
    elif metadata.get("generation") == 1:  # nobody has scaled it, whatever is noted
        size = max(1, spec["replicas"])
    else:  # which earlier releases did not note
        size = int(noted_number(annotations, SIZE_ANNOTATION)) or max(1, spec["replicas"])
    made = GroupSet(
        kind=kind,
        name=metadata["name"],
        uid=metadata["uid"],
        generation=int(noted_number(annotations, GENERATION_ANNOTATION)),
        revision=revision_in(metadata["name"]),
        size=size,
        specification=annotations.get(REVISION_ANNOTATION, ""),
        created=datetime.fromisoformat(metadata["creationTimestamp"]),
        deleting="deletionTimestamp" in metadata,
        weights=annotations.get(WEIGHTS_ANNOTATION, ""),
        draining_since=parse_time(annotations.get(DRAINING_ANNOTATION)),
    )
    return replace(made, scaled=spec["replicas"] != made.replicas)


def pod_of(manifest: Manifest) -> Pod:
    """Reduce a worker's pod. What ended how is said of the worker's container alone; others may be beside it."""
    metadata, status = manifest["metadata"], manifest.get("status", {})
    labels, conditions = metadata.get("labels", {}), conditions_of(manifest)
    containers = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
    container: Manifest = next((each for each in containers if each["name"] == WORKER_CONTAINER), {})
    state = container.get("state", {})
    terminated = state.get("terminated") or container.get("lastState", {}).get("terminated") or {}
    waiting = state.get("waiting") or {}
    scheduled, ready = conditions.get("PodScheduled", {}), conditions.get("Ready", {})
    disruption = conditions.get("DisruptionTarget", {})
    disrupted = disruption.get("status") == "True"
    index = noted_number(labels, POD_INDEX_LABEL) or noted_number(metadata.get("annotations", {}), COMPLETION_INDEX)
    phase = status.get("phase", "Pending")
    at_its_end = manifest.get("spec", {}).get("restartPolicy") == "Never" and "terminated" in state
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        index=int(index),
        phase=("Failed" if terminated.get("exitCode") else "Succeeded") if at_its_end else phase,
        created=datetime.fromisoformat(metadata["creationTimestamp"]),
        attempt=attempt_of(manifest),
        group=labels.get(Label.GROUP),
        owner=_controller(metadata),
        node=manifest.get("spec", {}).get("nodeName", ""),
        ip=status.get("podIP", ""),
        ready_since=parse_time(ready.get("lastTransitionTime")) if ready.get("status") == "True" else None,
        routing=_routing_of(labels.get(Label.ROUTING)),
        delete_requested=_delete_requested(metadata),
        grace_seconds=metadata.get("deletionGracePeriodSeconds") or 0,
        disrupted=parse_time(disruption.get("lastTransitionTime")) if disrupted else None,
        disruption=disruption.get("reason", "") if disrupted else "",
        disruption_message=disruption.get("message", "") if disrupted else "",
        failure=status.get("reason", ""),
        failure_message=status.get("message", ""),
        exit_code=terminated.get("exitCode"),
        exit_reason=terminated.get("reason", ""),
        exit_message=terminated.get("message", ""),
        started=parse_time(status.get("startTime")),
        finished=parse_time(terminated.get("finishedAt")),
        container_restarts=container.get("restartCount", 0),
        waiting=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        unschedulable=scheduled.get("message", "") if scheduled.get("reason") == "Unschedulable" else "",
        beside=next((trouble for each in containers if each is not container and (trouble := _mishap(each))), None),
        unexplained=at_its_end and phase not in ENDED,
        # Not by the phase, which is the worker's for a moment longer; native sidecars are ended by the kubelet.
        lingers=at_its_end
        and any("running" in each.get("state", {}) for each in status.get("containerStatuses") or ()),
        memory_limit=_memory_limit(manifest.get("spec", {})),
    )


def revision_seen_of(manifest: Manifest) -> Revision:
    """Reduce the record of a revision."""
    metadata, data = manifest["metadata"], manifest["data"]
    return Revision(
        name=metadata["name"].rpartition("-")[2],
        object_name=metadata["name"],
        uid=metadata["uid"],
        specification=metadata.get("annotations", {}).get(REVISION_ANNOTATION, ""),
        generation=manifest["revision"],
        created=datetime.fromisoformat(metadata["creationTimestamp"]),
        made_of=dict.fromkeys(data["fields"]) | data["spec"],
        weights=BaseWeights.model_validate(data["weights"]) if "weights" in data else None,
    )


def gateway_pod_of(manifest: Manifest) -> GatewayPod:
    """Reduce a pod of the gateway."""
    metadata, status = manifest["metadata"], manifest.get("status", {})
    told = metadata.get("annotations", {}).get(READ_ANNOTATION, "")
    return GatewayPod(metadata["name"], metadata["uid"], told, status.get("podIP", ""))


def gateway_down_of(deployment: Manifest, pods: Iterable[Pod]) -> GatewayDown | None:
    """Reduce the gateway's Deployment and what is said of its pods; None if one of them is ready."""
    conditions = conditions_of(deployment)
    available, refused = conditions.get("Available", {}), conditions.get("ReplicaFailure", {})
    since = parse_time(available.get("lastTransitionTime"))
    if deployment.get("status", {}).get("readyReplicas") or available.get("status") != "False" or since is None:
        return None
    refusal = refused.get("message", "") if refused.get("status") == "True" else ""
    said = ((pod.name, pod.unschedulable or (pod.beside.message if pod.beside else "")) for pod in pods)
    return GatewayDown(since, refusal or next((f"pod {name}: {words}" for name, words in said if words), ""))


def _memory_limit(spec: Manifest) -> str:
    containers = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    worker: Manifest = next((each for each in containers if each["name"] == WORKER_CONTAINER), {})
    return str(worker.get("resources", {}).get("limits", {}).get("memory", ""))


def _mishap(container: Manifest) -> Trouble | None:
    """Return why a container does not run, or has begun anew, in the cluster's words; None if all is well."""
    state = container.get("state", {})
    waiting = state.get("waiting") or {}
    ended = state.get("terminated") or container.get("lastState", {}).get("terminated") or {}
    held = "" if waiting.get("reason") in (None, "ContainerCreating", "PodInitializing") else waiting["reason"]
    code = ended.get("exitCode")
    if not held and not code:
        return None
    name = f"container {container['name']}"
    told = [f"{name}: {waiting.get('message') or held}"] if held else []
    if code:
        lines = [line.strip() for line in ended.get("message", "").splitlines() if line.strip()]
        told.append(f"{name} exited with code {code}{f': {lines[-1]}' if lines else ''}")
    return Trouble(held or ended.get("reason") or "Error", "; ".join(told))


def _routing_of(label: str | None) -> Routing:
    """Return which requests a leader gets; what is said of none, or what somebody has edited, is as it is made."""
    return Routing(label) if label in frozenset(Routing) else Routing.ON


def _controller(metadata: Manifest) -> Owner | None:
    for reference in metadata.get("ownerReferences") or ():
        if reference.get("controller"):
            return Owner(reference["kind"], reference["name"], reference["uid"])
    return None


def _delete_requested(metadata: Manifest) -> datetime | None:
    """The deletion timestamp is when the pod will be killed; the request came the grace period before."""
    deadline = parse_time(metadata.get("deletionTimestamp"))
    return deadline and deadline - timedelta(seconds=metadata.get("deletionGracePeriodSeconds") or 0)


def node_of(manifest: Manifest) -> Node:
    """Reduce a node. It is to be emptied if it is cordoned, tainted by whoever takes it away, or being deleted."""
    ready = conditions_of(manifest).get("Ready", {})
    metadata, spec = manifest["metadata"], manifest.get("spec", {})
    tainted = any(taint["key"] in EMPTYING_TAINTS for taint in spec.get("taints") or ())
    return Node(
        name=metadata["name"],
        ready=ready.get("status") == "True",
        ready_changed=parse_time(ready.get("lastTransitionTime")),
        to_be_emptied=bool(spec.get("unschedulable")) or tainted or "deletionTimestamp" in metadata,
    )


def exported_by(manifest: Manifest) -> BaseWeights | None:
    """Return the weights that an ArcticTraining has exported."""
    uri = (manifest.get("status") or {}).get("export", {}).get("uri")
    folder = path_of(uri) if uri else ""
    if not folder or _export(manifest) == "adapter":
        return None
    return BaseWeights(training=manifest["metadata"]["name"], folder=folder, claim_name=claim_of(manifest))


def claim_of(training: Manifest) -> str | None:
    """Return the claim that an ArcticTraining writes into."""
    claim: str | None = (training["spec"].get("checkpoint", {}).get("volume") or {}).get("claimName")
    return claim


def _export(manifest: Manifest) -> str | None:
    export: str | None = manifest["spec"].get("checkpoint", {}).get("export")
    return export


def lack_of(manifest: Manifest | None, namespace: str, name: str) -> Trouble | None:
    """Return why an ArcticTraining that has exported nothing never will; None if it may yet."""
    if manifest is None:
        return Trouble(
            "NoSuchTraining", f"there is no ArcticTraining {name} in namespace {namespace}: make it, or name another"
        )
    failed = conditions_of(manifest).get("Failed", {})
    if failed.get("status") == "True":
        message = f"ArcticTraining {name} has failed ({failed['reason']}): mend it, or name another"
        return Trouble("BaseFailed", message)
    if _export(manifest) in ("none", "adapter"):
        message = f"ArcticTraining {name} exports no weights: name one whose checkpoint.export is huggingface"
        return Trouble("BaseExportsNothing", message)
    return None
