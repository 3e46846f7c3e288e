"""A real training and a real service, as small as they can be, for namespaces whose other pods have stand-ins."""

import shutil
from typing import Any

from models import write_plain_model
from objects import Objects, example

from arctic_cluster.paths import MODELS

MOUNT = "/var/lib/arctic/models"
CORES = {"requests": {"cpu": "100m"}}
"""What a worker asks for: many are to run on this machine."""


def real_training(objects: Objects, name: str, tokens: str | None = None) -> None:
    """Apply the example of a training; `tokens` are those of each stage instead of the example's."""
    manifest: dict[str, Any] = example("ArcticTraining", name)
    for stage in manifest["spec"]["curriculum"]["stages"] if tokens else ():
        stage["tokens"] = tokens
    manifest["spec"]["resources"] = CORES
    objects.apply(manifest)


def real_service(objects: Objects, name: str, **spec: Any) -> None:
    """Apply the example of a service, of a model with random weights; `spec` are other fields of its specification."""
    folder = objects.cluster.volumes / MODELS / objects.namespace
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was ended
    write_plain_model(folder)
    manifest: dict[str, Any] = example("ArcticInference", name)
    manifest["spec"] |= {"model": {"uri": f"file://{MOUNT}/{objects.namespace}"}, "resources": CORES}
    manifest["spec"]["attention"] = {"maxLength": 256}
    manifest["spec"]["template"]["volumes"] = [{"claimName": MODELS, "mountPath": MOUNT}]
    manifest["spec"] |= spec
    objects.apply(manifest)
