"""The restricted Pod Security standard (v1.34) as a function, for pods that no API server has judged."""

from typing import Any

Manifest = dict[str, Any]

_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip


def violations(pod: Manifest) -> list[str]:
    """Return what in a pod's specification the restricted standard refuses."""
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
