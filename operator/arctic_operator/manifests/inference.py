"""The children of one inference group: a StatefulSet, its headless Service, NetworkPolicy and PodDisruptionBudget."""

import math
from functools import partial

from arctic_api.common import BaseWeights, ClaimVolume, parse_duration
from arctic_api.world import STORE_FOLDER, InferenceGroup, Label, Ports
from arctic_operator.manifests.common import (
    Manifest,
    child_metadata,
    headless_service,
    hosts,
    object_labels,
)
from arctic_operator.manifests.nim import SIDECAR_RESOURCES, nim_template
from arctic_operator.manifests.worker import network_policy, worker_template
from arctic_operator.observed import (
    GENERATION_ANNOTATION,
    POD_INDEX_LABEL,
    REVISION_ANNOTATION,
    WEIGHTS_ANNOTATION,
    Identity,
    Inference,
)
from arctic_operator.settings import Settings

MODULE = "arctic_workers.inference"
MARGIN_SECONDS = 10
"""What a pod gets beyond the drain timeout, to end in order."""


def group_services(identity: Identity, name: str, settings: Settings) -> list[Manifest]:
    """Return what stands beside a group's StatefulSet for as long as it lives."""
    ports, selector = Ports(), _selector(identity, name)
    gateway = {Label.UID.value: identity.uid, Label.ROLE.value: "gateway"}
    return [
        headless_service(identity, name, selector, ports.rendezvous),
        network_policy(identity, name, settings, selector, {ports.http: gateway}),
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": child_metadata(identity, name, labels=selector),
            "spec": {"maxUnavailable": 0, "selector": {"matchLabels": selector}},
        },
    ]


def _selector(identity: Identity, name: str) -> dict[str, str]:
    return {Label.UID.value: identity.uid, Label.GROUP.value: name}


def group_set(inference: Inference, revision: str, name: str, settings: Settings, base: BaseWeights | None) -> Manifest:
    """Return a group's StatefulSet, made once and never changed."""
    identity, spec = inference.identity, inference.spec
    selector = _selector(identity, name)
    labels = selector | {Label.REVISION.value: revision, Label.ROLE.value: "worker"}
    template = _template(inference, _world(inference, revision, name, base), labels, settings, base)
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": child_metadata(
            identity,
            name,
            labels=labels,
            annotations={
                REVISION_ANNOTATION: inference.revision,
                GENERATION_ANNOTATION: str(inference.generation),
                WEIGHTS_ANNOTATION: base.folder if base else "",
            },
        ),
        "spec": {
            "replicas": spec.parallelism.pipeline,
            "serviceName": name,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "selector": {"matchLabels": selector},
            "template": template,
        },
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
        labels=object_labels(identity) | labels | {Label.ROUTING.value: "on"},
        selector=_selector(identity, group.group),
        grace_seconds=math.ceil(parse_duration(spec.rollout.drain_timeout)) + MARGIN_SECONDS,
        priority_class=spec.priority_class_name,
        spec={},
    )
    control = {"control": ports.control, "metrics": ports.metrics}
    if spec.engine.name == "nim":
        pod_alone = spec.template and spec.template.model_copy(update={"environment": None, "volumes": None})
        resources = SIDECAR_RESOURCES
        worker = build(ports=control, image=None, claims=(), resources=resources, template=pod_alone)
        return nim_template(worker, group, spec, settings)
    return build(
        ports=control | {"rendezvous": ports.rendezvous, "http": ports.http},
        image=spec.engine.image,
        claims=[ClaimVolume(claim_name=claim, mount_path=STORE_FOLDER)] if claim else [],
        resources=spec.resources,
        template=spec.template,
    )


def _world(inference: Inference, revision: str, name: str, base: BaseWeights | None) -> InferenceGroup:
    identity, spec = inference.identity, inference.spec
    uri = base.folder if base else spec.model.uri or ""
    return InferenceGroup(
        namespace=identity.namespace,
        name=identity.name,
        uid=identity.uid,
        hosts=hosts(name, identity.namespace, spec.parallelism.pipeline),
        spec=spec,
        group=name,
        revision=revision,
        model_folder=uri.removeprefix("file://"),
    )
