"""Rendering the chart with the real helm, and the restricted Pod Security standard as a function."""

import functools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from arctic_cluster import binaries

CHART = Path(__file__).parents[3] / "charts" / "arctic"

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]


@pytest.fixture(scope="session")
def helm() -> str:
    built = binaries.folder() / "helm"
    found = str(built) if built.exists() else shutil.which("helm")
    assert found, f"helm is missing: `make setup` builds it into {built.parent}"
    return found


@pytest.fixture(scope="session")
def run_helm(helm: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    home = tmp_path_factory.mktemp("helm")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        # No kubeconfig and no configuration of the user's: the chart alone decides what comes out.
        environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "KUBECONFIG": "/dev/null"}
        return subprocess.run([helm, *arguments], capture_output=True, text=True, check=False, env=environment)

    return run


@pytest.fixture(scope="session")
def render(run_helm: Callable[..., subprocess.CompletedProcess[str]]) -> Render:
    @functools.cache
    def objects(*arguments: str) -> list[Manifest]:
        rendered = run_helm("template", "arctic", str(CHART), "--namespace", "arctic-system", *arguments)
        assert rendered.returncode == 0, rendered.stderr
        return [document for document in yaml.load_all(rendered.stdout, yaml.CSafeLoader) if document]

    return objects


@pytest.fixture(scope="session")
def violations() -> Callable[[Manifest], list[str]]:
    """What in a pod's specification the restricted Pod Security standard (v1.34) refuses."""
    return _violations


_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip


def _violations(pod: Manifest) -> list[str]:
    found = [f"{field} is set" for field in ("hostNetwork", "hostPID", "hostIPC") if pod.get(field)]
    for volume in pod.get("volumes", []):
        found += [f"volume {volume['name']} is a {kind}" for kind in volume.keys() - {"name"} - _VOLUMES]
    shared = pod.get("securityContext", {})
    if shared.get("sysctls"):
        found.append("sysctls are set")
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        found += [f"container {container['name']}: {what}" for what in _container_violations(container, shared)]
    return found


def _container_violations(container: Manifest, shared: Manifest) -> list[str]:
    own = container.get("securityContext", {})
    effective = shared | own
    capabilities = own.get("capabilities", {})
    checks = {
        "privileged": not own.get("privileged"),
        "may escalate privileges": own.get("allowPrivilegeEscalation") is False,
        "keeps capabilities": "ALL" in capabilities.get("drop", []),
        "adds capabilities": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
        "may run as root": effective.get("runAsNonRoot") is True,
        "runs as root": effective.get("runAsUser") != 0,
        "has no seccomp profile": effective.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
        "uses a host port": not any(port.get("hostPort") for port in container.get("ports", [])),
        "has a procMount": own.get("procMount", "Default") == "Default",
    }
    return [what for what, held in checks.items() if not held]
