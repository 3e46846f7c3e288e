"""The trainings that are made, and what our operator makes of each. Pure."""

from datetime import UTC, datetime
from typing import Any

from small_specs import TRAINING_SPEC

from arctic_api import API_VERSION, training
from arctic_api.training import ArcticTrainingSpec
from arctic_cluster.addresses import plan
from arctic_operator.certificates import Authority, server_secret
from arctic_operator.manifests.common import child_metadata, revision_of, secret_manifest, tls_name
from arctic_operator.manifests.training import attempt_job, attempt_services
from arctic_operator.observe import training_parts
from arctic_operator.observed import Identity, Training, read_status
from arctic_operator.settings import Settings
from benchmarks.reconciling.plane import ADDRESS, halves

Manifest = dict[str, Any]

NAMESPACE, SYSTEM = "team", "arctic-system"
CLAIM = "store"
PLAN = plan("bench", 7, 1)
SETTINGS = {
    "ARCTIC_NAMESPACE": SYSTEM,
    "ARCTIC_READ_NODES": "true",
    "ARCTIC_WORKER_IMAGE": "arctic/worker:0.1.0",
    "ARCTIC_GATEWAY_IMAGE": "arctic/gateway:0.1.0",
    "ARCTIC_LOG_LEVEL": "info",
}
"""What the chart sets."""


def name_of(index: int) -> str:
    """Return the name of an object."""
    return f"t-{index:05d}"


def address_of(name: str) -> str:
    """Return the address of the first pod of an object."""
    return str(halves(PLAN)[0][int(name.removeprefix("t-")) + 256])


def arctic_training(index: int) -> Manifest:
    """Return a training of two pods."""
    name = name_of(index)
    return {
        "apiVersion": API_VERSION,
        "kind": training.KIND,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": TRAINING_SPEC
        | {
            "checkpoint": {"volume": {"claimName": CLAIM}},
            "template": {"annotations": {ADDRESS: address_of(name)}},
        },
    }


class Children:
    """What our operator makes of a training, and says of it, made without thinking."""

    def __init__(self) -> None:
        now = datetime.now(UTC)
        self._settings = Settings.from_environment(SETTINGS)
        self._secret = server_secret(Authority.create(now), name_of(0), NAMESPACE, now)

    def of(self, manifest: Manifest) -> list[Manifest]:
        """Return the children of a training that the API server has."""
        metadata = manifest["metadata"]
        identity = Identity(training.KIND, metadata["namespace"], metadata["name"], metadata["uid"])
        subject = Training(
            identity,
            metadata["generation"],
            datetime.fromisoformat(metadata["creationTimestamp"]),
            False,
            revision_of(training_parts(manifest["spec"])),
            ArcticTrainingSpec.model_validate(manifest["spec"]),
            read_status(training.ArcticTrainingStatus, {}),
        )
        return [
            secret_manifest(child_metadata(identity, tls_name(identity)), self._secret),
            *attempt_services(identity, 1, self._settings),
            attempt_job(subject, 1, self._settings, None, 0.0),
        ]
