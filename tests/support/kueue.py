"""The Kueue project's own definitions and controller, for Jobs alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import controllers
import yaml

from arctic_cluster import Cluster, binaries

SETTINGS = {
    "apiVersion": "config.kueue.x-k8s.io/v1beta1",
    "kind": "Configuration",
    "namespace": "kube-system",
    "integrations": {"frameworks": ["batch/job"]},
}
WITHOUT = "--feature-gates=VisibilityOnDemand=false"
"""Its own API server, which would have to be registered."""
METRICS = "/etc/kueue/metrics/certs"
GROUPS = {"batch", "kueue.x-k8s.io"}


def _webhooks(file: Path) -> list[controllers.Manifest]:
    """Return the project's webhook configurations, of Jobs and its own kinds."""
    return [
        document | {"webhooks": [each for each in document["webhooks"] if set(each["rules"][0]["apiGroups"]) <= GROUPS]}
        for document in yaml.safe_load_all(file.read_text())
        if document
    ]


@contextmanager
def running(cluster: Cluster, folder: Path) -> Iterator[None]:
    """Install the definitions, the webhooks and the controller for a while; `folder` keeps its files and its log."""
    controller = binaries.controller("kueue")
    components = controller.source / "config" / "components"
    definitions = list((components / "crd" / "bases").glob("*.yaml"))
    webhooks = _webhooks(components / "webhook" / "manifests.yaml")
    with controllers.running(cluster, controller, folder, SETTINGS, definitions, webhooks, [WITHOUT], METRICS):
        yield
