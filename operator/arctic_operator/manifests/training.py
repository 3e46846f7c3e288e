"""The children of one training attempt: an Indexed Job, its headless Service and its NetworkPolicy."""

import math
from collections.abc import Sequence

from arctic_api.common import BaseWeights, ClaimVolume, parse_duration
from arctic_api.world import STORE_FOLDER, Label, Ports, TrainingWorld, run_folder
from arctic_operator.manifests.common import (
    Manifest,
    attempt_name,
    child_metadata,
    headless_service,
    host,
    object_labels,
)
from arctic_operator.manifests.worker import network_policy, worker_template
from arctic_operator.observed import (
    COMPLETION_INDEX,
    GENERATION_ANNOTATION,
    GPU_HOURS_ANNOTATION,
    QUEUE_LABEL,
    REVISION_ANNOTATION,
    Identity,
    Training,
)
from arctic_operator.settings import Settings

MODULE = "arctic_workers.training"
BASE_FOLDER = "/var/lib/arctic/base"
"""Where the claim of the training that `model.from` names is mounted, if it is not the store itself."""


def attempt_services(identity: Identity, attempt: int, settings: Settings) -> list[Manifest]:
    """Return what stands beside an attempt's Job for as long as it runs."""
    name, selector = attempt_name(identity, attempt), _selector(identity, attempt)
    return [
        headless_service(identity, name, selector, Ports().rendezvous),
        network_policy(identity, name, settings, selector),
    ]


def _selector(identity: Identity, attempt: int) -> dict[str, str]:
    return {Label.UID.value: identity.uid, Label.ATTEMPT.value: str(attempt)}


def attempt_job(
    training: Training, attempt: int, settings: Settings, base: BaseWeights | None, gpu_hours: float
) -> Manifest:
    """Return an attempt's Job, made once and never changed; `gpu_hours` is what the earlier attempts took."""
    identity, spec, ports = training.identity, training.spec, Ports()
    name, nodes = attempt_name(identity, attempt), training.spec.parallelism.nodes
    selector = _selector(identity, attempt)
    queued = {QUEUE_LABEL: spec.queue} if spec.queue else {}
    claims, weights = _claims(training, base)
    template = worker_template(
        identity,
        settings,
        module=MODULE,
        world=_world(training, attempt, weights),
        rank_field=f"metadata.annotations['{COMPLETION_INDEX}']",
        labels=object_labels(identity) | selector | {Label.ROLE.value: "worker"},
        selector=selector,
        ports={"control": ports.control, "metrics": ports.metrics, "rendezvous": ports.rendezvous},
        image=spec.image,
        claims=claims,
        resources=spec.resources,
        grace_seconds=math.ceil(parse_duration(spec.checkpoint.grace_period)),
        priority_class=spec.priority_class_name,
        template=spec.template,
        spec={"restartPolicy": "Never", "subdomain": name},
    )
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": child_metadata(
            identity,
            name,
            role="worker",
            labels=selector | queued,
            annotations={
                REVISION_ANNOTATION: training.revision,
                GENERATION_ANNOTATION: str(training.generation),
                GPU_HOURS_ANNOTATION: f"{gpu_hours:.6f}",
            },
        ),
        "spec": {
            "completionMode": "Indexed",
            "completions": nodes,
            "parallelism": nodes,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            # Whose turn it is the queue says, by taking this back.
            **({"suspend": True} if spec.queue else {}),
            "template": template,
        },
    }


def _claims(training: Training, base: BaseWeights | None) -> tuple[list[ClaimVolume], str | None]:
    """Return the claims to mount, and the folder of the weights to start from."""
    volume = training.spec.checkpoint.volume
    stores = [ClaimVolume(claim_name=volume.claim_name, mount_path=STORE_FOLDER, read_only=False)] if volume else []
    return weights_claims(stores, base)


def weights_claims(stores: Sequence[ClaimVolume], base: BaseWeights | None) -> tuple[list[ClaimVolume], str | None]:
    """Return the claims to mount besides the store, if there is one, and the folder of a training's weights."""
    claims = list(stores)
    if base is None:
        return claims, None
    if base.claim_name in (None, *(claim.claim_name for claim in stores)):
        return claims, base.folder
    claims.append(ClaimVolume(claim_name=str(base.claim_name), mount_path=BASE_FOLDER))
    return claims, base.folder.replace(STORE_FOLDER, BASE_FOLDER, 1)


def _world(training: Training, attempt: int, weights_folder: str | None) -> TrainingWorld:
    identity, spec = training.identity, training.spec
    volume = spec.checkpoint.volume
    root = f"{STORE_FOLDER}/{volume.path}" if volume and volume.path else STORE_FOLDER
    return TrainingWorld(
        namespace=identity.namespace,
        name=identity.name,
        uid=identity.uid,
        first_host=host(attempt_name(identity, attempt), identity.namespace, 0),
        spec=spec,
        attempt=attempt,
        epoch=attempt,
        run_folder=run_folder(root, identity.namespace, identity.name, identity.uid),
        weights_folder=weights_folder,
    )
