"""The LeaderWorkerSet project's own definition and controller."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import controllers
import yaml

from arctic_cluster import Cluster, binaries


def _webhooks(folder: Path) -> list[controllers.Manifest]:
    """Return the project's webhook configurations, with its own patches."""
    configurations = [document for document in yaml.safe_load_all((folder / "manifests.yaml").read_text()) if document]
    for configuration in configurations:
        what = configuration["kind"].removesuffix("WebhookConfiguration").lower()
        for patch in yaml.safe_load((folder / f"{what}-patch.yaml").read_text()):
            configuration["webhooks"][int(patch["path"].rpartition("/")[2])] = patch["value"]
    return configurations


@contextmanager
def running(cluster: Cluster, folder: Path) -> Iterator[None]:
    """Install the definition, the webhooks and the controller for a while; `folder` keeps its files and its log."""
    controller = binaries.controller("lws")
    config = controller.source / "config"
    settings = {"apiVersion": "config.lws.x-k8s.io/v1alpha1", "kind": "Configuration"}
    definitions = list((config / "crd" / "bases").glob("*.yaml"))
    with controllers.running(cluster, controller, folder, settings, definitions, _webhooks(config / "webhook")):
        yield
