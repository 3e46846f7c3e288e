"""The Kubernetes objects that a local cluster starts with. Pure: values in, documents out.

CoreDNS, namespaces that enforce the restricted Pod Security standard, and volumes on host folders with the claims
through which pods get at them (a restricted pod may mount a claim, and no host path).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arctic_cluster.config import DOMAIN
from arctic_cluster.paths import CORPUS, MODELS, STORE

Manifest = dict[str, Any]

SYSTEM_NAMESPACE = "arctic-system"
_DNS_PORT = 5353
_DNS_BINARIES = "/opt/cluster/bin"
# Names outside the cluster do not exist here, and are told so at once: nothing leaves the machine.
_COREFILE = f"""{DOMAIN}:{_DNS_PORT} in-addr.arpa:{_DNS_PORT} {{
    errors
    health :8080
    ready :8181
    kubernetes {DOMAIN} in-addr.arpa {{
        ttl 5
    }}
    cache 5
}}
.:{_DNS_PORT} {{
    errors
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""


@dataclass(frozen=True)
class Claim:
    """A claim by which pods mount a host folder; read-only ones are for pods that say `readOnly: true`."""

    name: str
    folder: Path
    mode: str


def claims(environment: Path, engines: Iterable[str], volumes: Path) -> list[Claim]:
    """The claims of every namespace that runs workers; the environment of an engine lies beside that of all."""
    folders = {engine: environment.with_name(f"{environment.name}-{engine}") for engine in engines}
    return [
        Claim("arctic-environment", environment, "ReadOnlyMany"),
        *(Claim(f"arctic-environment-{engine}", folder, "ReadOnlyMany") for engine, folder in folders.items()),
        Claim(CORPUS, volumes / CORPUS, "ReadOnlyMany"),
        Claim(MODELS, volumes / MODELS, "ReadOnlyMany"),
        Claim(STORE, volumes / STORE, "ReadWriteMany"),
    ]


def restricted_namespace(name: str) -> Manifest:
    """A namespace that enforces the restricted Pod Security standard."""
    levels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": levels}}


def volume_name(claim: Claim, namespace: str) -> str:
    """The volume of a namespace's claim: volumes have no namespace."""
    return f"{claim.name}-{namespace}"


def claim_with_volume(claim: Claim, namespace: str) -> list[Manifest]:
    """A volume on the claim's folder, which is the same for all nodes, and the claim bound to it."""
    volume = volume_name(claim, namespace)
    common: Manifest = {"accessModes": [claim.mode], "storageClassName": ""}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": common
            | {
                "capacity": {"storage": "1Ti"},
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": str(claim.folder), "type": "Directory"},
                "claimRef": {"namespace": namespace, "name": claim.name},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": claim.name, "namespace": namespace},
            "spec": common | {"volumeName": volume, "resources": {"requests": {"storage": "1Ti"}}},
        },
    ]


def dns(address: str, image: str, binaries: Path, replicas: int) -> list[Manifest]:
    """CoreDNS as pods of the cluster, spread over the nodes, so that names outlive a node."""
    labels = {"k8s-app": "kube-dns"}
    metadata = {"name": "coredns", "namespace": "kube-system"}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        *_dns_access(metadata["namespace"]),
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"Corefile": _COREFILE}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata | {"name": "kube-dns", "labels": labels},
            "spec": {
                "selector": labels,
                "clusterIP": address,
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": _DNS_PORT},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": _DNS_PORT},
                ],
            },
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata | {"labels": labels},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": _dns_pod(image, binaries, labels)},
            },
        },
    ]


def _dns_access(namespace: str) -> list[Manifest]:
    group = "rbac.authorization.k8s.io"
    name = {"name": "system:coredns"}
    verbs = ["list", "watch"]
    return [
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRole",
            "metadata": name,
            "rules": [
                {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": verbs},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": verbs},
            ],
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": name,
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", **name},
            "subjects": [{"kind": "ServiceAccount", "name": "coredns", "namespace": namespace}],
        },
    ]


def _dns_pod(image: str, binaries: Path, labels: Mapping[str, str]) -> Manifest:
    return {
        "serviceAccountName": "coredns",
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": dict(labels)},
            }
        ],
        "containers": [
            {
                "name": "coredns",
                "image": image,
                "command": [f"{_DNS_BINARIES}/coredns", "-conf", "/etc/coredns/Corefile"],
                "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 2},
                "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}},
                "resources": {"requests": {"cpu": "20m", "memory": "40Mi"}, "limits": {"memory": "170Mi"}},
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [
                    {"name": "config", "mountPath": "/etc/coredns", "readOnly": True},
                    {"name": "binaries", "mountPath": _DNS_BINARIES, "readOnly": True},
                ],
            }
        ],
        "volumes": [
            {"name": "config", "configMap": {"name": "coredns"}},
            {"name": "binaries", "hostPath": {"path": str(binaries), "type": "Directory"}},
        ],
    }
