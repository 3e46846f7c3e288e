"""The operator as a process of this machine, with the settings and the rights of the one that the chart installs."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from arctic_cluster import Cluster
from arctic_cluster.manifests import SYSTEM_NAMESPACE
from arctic_workers.control import lifeline

NAME = "arctic-operator"
TOKEN_LASTS = "--duration=6h"
ENDS_WITHIN = 15.0


class OperatorProcess:
    """One operator, which may be killed and started again."""

    def __init__(self, cluster: Cluster, server: str, folder: Path, settings: Mapping[str, str]) -> None:
        """Prepare an operator that asks `server`; `settings` are variables over those of the chart's Deployment."""
        self._log = folder / "operator.log"
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(_kubeconfig(cluster, server)))
        self._environment = os.environ | _deployed(cluster) | {"KUBECONFIG": str(kubeconfig)} | dict(settings)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as log:
            command = lifeline.command("arctic_operator")
            self._process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def kill(self) -> None:
        """Kill it at once."""
        if self._process:
            self._process.kill()

    def end(self) -> None:
        """Tell it to end, and wait."""
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(ENDS_WITHIN)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _deployed(cluster: Cluster) -> dict[str, str]:
    """The variables of the operator's Deployment, which must not run it meanwhile."""
    deployment = json.loads(cluster.kubectl("get", "deployment", NAME, "-n", SYSTEM_NAMESPACE, "-o", "json"))
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    variables = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    return variables | {"ARCTIC_NAMESPACE": SYSTEM_NAMESPACE, "ARCTIC_METRICS_PORT": "0"}


def _kubeconfig(cluster: Cluster, server: str) -> dict[str, Any]:
    token = cluster.kubectl("create", "token", NAME, "-n", SYSTEM_NAMESPACE, TOKEN_LASTS).strip()
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "proxied", "cluster": {"server": server}}],
        "users": [{"name": NAME, "user": {"token": token}}],
        "contexts": [{"name": "proxied", "context": {"cluster": "proxied", "user": NAME}}],
        "current-context": "proxied",
    }
