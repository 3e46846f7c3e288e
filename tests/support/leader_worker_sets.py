"""The LeaderWorkerSet project's own definition and controller, as a process beside the local cluster's control plane.

Installed as usual, the controller makes its webhooks' certificates and keeps them in a Secret that its pod mounts; here
they are the test's, and the webhooks are called at an address of this machine.
"""

import base64
import json
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from socket import socket
from typing import Any

import yaml
from objects import eventually, until_established

from arctic_cluster import Cluster, binaries
from arctic_cluster.certificates import Authority

HERE = "127.0.0.1"


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with closing(socket()) as probe:
        probe.bind((HERE, 0))
        return int(probe.getsockname()[1])


def webhooks(folder: Path, authority: Path, port: int) -> list[dict[str, Any]]:
    """Return the project's webhook configurations, with its own patches, called at a port of this machine."""
    configurations = [document for document in yaml.safe_load_all((folder / "manifests.yaml").read_text()) if document]
    bundle = base64.b64encode(authority.read_bytes()).decode()
    for configuration in configurations:
        what = configuration["kind"].removesuffix("WebhookConfiguration").lower()
        for patch in yaml.safe_load((folder / f"{what}-patch.yaml").read_text()):
            configuration["webhooks"][int(patch["path"].rpartition("/")[2])] = patch["value"]
        configuration["metadata"]["name"] = f"lws-{what}"
        for webhook in configuration["webhooks"]:
            path = webhook["clientConfig"]["service"]["path"]
            webhook["clientConfig"] = {"url": f"https://{HERE}:{port}{path}", "caBundle": bundle}
    return configurations


@contextmanager
def running(cluster: Cluster, folder: Path) -> Iterator[None]:
    """Install the definition, the webhooks and the controller for a while; `folder` keeps its files and its log."""
    controller = binaries.controller("lws")
    config = controller.source / "config"
    authority, port, health = Authority(folder / "certificates"), free_port(), free_port()
    authority.issue("tls", "lws", hosts=[HERE])
    settings = {
        "apiVersion": "config.lws.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "webhook": {"host": HERE, "port": port, "certDir": str(authority.folder)},
        "metrics": {"bindAddress": "0"},
        "health": {"healthProbeBindAddress": f"{HERE}:{health}"},
    }
    (folder / "config.yaml").write_text(json.dumps(settings))
    (definition,) = (config / "crd" / "bases").glob("*.yaml")
    made = webhooks(config / "webhook", authority.certificate, port)
    cluster.kubectl("apply", "--server-side", "-f", str(definition))
    until_established(cluster, "-f", str(definition))
    command = [str(controller.program), f"--config={folder / 'config.yaml'}", f"--kubeconfig={cluster.kubeconfig}"]
    with (folder / "lws.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            eventually(
                "LeaderWorkerSet's controller answers", lambda: _answers(process, f"http://{HERE}:{health}/readyz")
            )
            cluster.apply(made)
            yield
        finally:
            for configuration in made:
                name = configuration["metadata"]["name"]
                cluster.kubectl("delete", configuration["kind"], name, "--ignore-not-found")
            cluster.kubectl("delete", "-f", str(definition))
            process.terminate()


def _answers(process: subprocess.Popen[bytes], address: str) -> bool:
    assert process.poll() is None, "LeaderWorkerSet's controller has ended: see its log"
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
