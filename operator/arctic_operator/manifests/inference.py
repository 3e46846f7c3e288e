"""The children of one inference group: what holds its pods, headless Service, NetworkPolicy and PodDisruptionBudget.

Pods are held by a StatefulSet, or by a LeaderWorkerSet (leaderworkerset.x-k8s.io/v1) of one replica.
"""

import math
from collections.abc import Mapping
from functools import partial

from arctic_api.common import BaseWeights, ClaimVolume, parse_duration
from arctic_api.inference import ArcticInferenceSpec
from arctic_api.uris import path_of
from arctic_api.world import LOGIN_FOLDER, STORE_FOLDER, InferenceGroup, Label, Ports, Routing
from arctic_operator.manifests.common import (
    Manifest,
    child_metadata,
    headless_service,
    host,
    login_name,
    object_labels,
)
from arctic_operator.manifests.nim import NOT_THE_WORKERS, SIDECAR_RESOURCES, nim_template
from arctic_operator.manifests.worker import network_policy, worker_template
from arctic_operator.observed import (
    GENERATION_ANNOTATION,
    LEADER_WORKER_SET,
    POD_INDEX_LABEL,
    REVISION_ANNOTATION,
    SIZE_ANNOTATION,
    WEIGHTS_ANNOTATION,
    Identity,
    Inference,
)
from arctic_operator.settings import Settings

MODULE = "arctic_workers.inference"
MARGIN_SECONDS = 10
"""What a pod gets beyond the drain timeout, to end in order."""


def needs_login(spec: ArcticInferenceSpec) -> bool:
    """Whether the pods of a group log in to each other: MPI starts the ranks of TensorRT-LLM over SSH."""
    return spec.engine.name == "tensorrt-llm" and spec.parallelism.pipeline > 1


def group_services(identity: Identity, name: str, kind: str, settings: Settings) -> list[Manifest]:
    """Return what stands beside a group's set of that kind for as long as it lives.

    A LeaderWorkerSet's controller makes the headless Service itself, under the same name.
    """
    ports, selector = Ports(), _selector(identity, name)
    gateway = {Label.UID.value: identity.uid, Label.ROLE.value: "gateway"}
    # Nobody may evict a pod of a group: who sees its node being emptied has another group serve first.
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": child_metadata(identity, name, labels=selector),
        "spec": {"maxUnavailable": 0, "selector": {"matchLabels": selector}},
    }
    return [
        *([] if kind == LEADER_WORKER_SET else [headless_service(identity, name, selector, ports.rendezvous)]),
        network_policy(identity, name, settings, selector, {ports.http: gateway}),
        *([budget] if settings.read_nodes else []),
    ]


def _selector(identity: Identity, name: str) -> dict[str, str]:
    return {Label.UID.value: identity.uid, Label.GROUP.value: name}


def group_set(
    inference: Inference,
    revision: str,
    name: str,
    settings: Settings,
    base: BaseWeights | None,
    routing: Routing = Routing.ON,
) -> Manifest:
    """Return a group's set, of the kind that the settings ask for; made once and never changed.

    `routing` is what its leader begins with.
    """
    identity, kind, size = inference.identity, settings.inference_groups, inference.spec.parallelism.pipeline
    selector = _selector(identity, name)
    labels = selector | {Label.REVISION.value: revision, Label.ROLE.value: "worker"}
    routed = labels | {Label.ROUTING.value: routing.value}
    template = _template(inference, _world(inference, revision, name, kind, base), routed, settings, base)
    if kind == LEADER_WORKER_SET:
        api_version, body = "leaderworkerset.x-k8s.io/v1", _leader_worker_set(size, template)
    else:
        api_version, body = "apps/v1", _stateful_set(name, size, selector, template)
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": child_metadata(
            identity,
            name,
            labels=labels,
            annotations={
                REVISION_ANNOTATION: inference.revision,
                GENERATION_ANNOTATION: str(inference.generation),
                WEIGHTS_ANNOTATION: base.folder if base else "",
                SIZE_ANNOTATION: str(size),
            },
        ),
        "spec": body,
    }


def _template(
    inference: Inference, group: InferenceGroup, labels: dict[str, str], settings: Settings, base: BaseWeights | None
) -> Manifest:
    identity, spec, ports = inference.identity, inference.spec, Ports()
    claim = base.claim_name if base else None
    build = partial(
        worker_template,
        identity,
        settings,
        module=MODULE,
        engine=spec.engine.name,
        world=group,
        rank_field=f"metadata.labels['{POD_INDEX_LABEL}']",
        labels=object_labels(identity) | labels,
        selector=_selector(identity, group.group),
        grace_seconds=math.ceil(parse_duration(spec.rollout.drain_timeout)) + MARGIN_SECONDS,
        priority_class=spec.priority_class_name,
        spec={},
    )
    control = {"control": ports.control, "metrics": ports.metrics}
    if spec.engine.name == "nim":
        pod_alone = spec.template and spec.template.model_copy(update=NOT_THE_WORKERS)
        resources = SIDECAR_RESOURCES
        worker = build(ports=control, image=None, claims=(), resources=resources, template=pod_alone)
        return nim_template(worker, group, spec, settings)
    login = needs_login(spec)
    return build(
        ports=control
        | {"rendezvous": ports.rendezvous, "http": ports.http}
        | ({"login": ports.login} if login else {}),
        image=spec.engine.image,
        claims=[ClaimVolume(claim_name=claim, mount_path=STORE_FOLDER)] if claim else [],
        resources=spec.resources,
        template=spec.template,
        secrets={login_name(identity): LOGIN_FOLDER} if login else {},
    )


def _stateful_set(name: str, size: int, selector: Mapping[str, str], template: Manifest) -> Manifest:
    return {
        "replicas": size,
        "serviceName": name,
        "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "OnDelete"},
        "selector": {"matchLabels": dict(selector)},
        "template": template,
    }


def _leader_worker_set(size: int, template: Manifest) -> Manifest:
    """Return the specification of one group, of which its controller decides as little as it lets us choose.

    Workers end as one and the operator remakes what is held back: RecreateGroupOnPodRestart would replace the pods of a
    group at its first exit, and with them what they have said. The partition keeps every update off the one replica:
    the controller takes a specification that a newer release of it writes otherwise for an update.
    """
    return {
        "replicas": 1,
        "startupPolicy": "LeaderCreated",
        "networkConfig": {"subdomainPolicy": "Shared"},
        "rolloutStrategy": {
            "type": "RollingUpdate",
            "rollingUpdateConfiguration": {"partition": 1, "maxUnavailable": 1, "maxSurge": 0},
        },
        "leaderWorkerTemplate": {"size": size, "restartPolicy": "None", "workerTemplate": template},
    }


def _hosts(name: str, namespace: str, kind: str, size: int) -> list[str]:
    """Return the address of each pod by pipeline rank: a LeaderWorkerSet names workers after the leader."""
    if kind != LEADER_WORKER_SET:
        return [host(name, namespace, index) for index in range(size)]
    pods = [f"{name}-0", *(f"{name}-0-{rank}" for rank in range(1, size))]
    return [f"{pod}.{name}.{namespace}.svc" for pod in pods]


def _world(inference: Inference, revision: str, name: str, kind: str, base: BaseWeights | None) -> InferenceGroup:
    identity, spec = inference.identity, inference.spec
    uri = base.folder if base else spec.model.uri or ""
    return InferenceGroup(
        namespace=identity.namespace,
        name=identity.name,
        uid=identity.uid,
        hosts=_hosts(name, identity.namespace, kind, spec.parallelism.pipeline),
        spec=spec,
        group=name,
        revision=revision,
        model_folder=path_of(uri),
        login_folder=LOGIN_FOLDER if needs_login(spec) else None,
    )
