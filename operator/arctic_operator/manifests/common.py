"""Names, labels, owners and security that all children share.

Names follow from the owner alone, so that doing a thing twice is doing it once.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from arctic_api import API_VERSION
from arctic_api.common import MAX_OBJECT_NAME
from arctic_api.world import Label, Routing, uid5
from arctic_operator.observed import POD_INDEX_LABEL, Identity

Manifest = dict[str, Any]

WORKER_USER = 65532
OPERATOR_LABELS = {"app.kubernetes.io/name": "arctic-operator"}

MAX_GROUP_NAME = 50
"""A StatefulSet's pods carry its name and eleven more characters in a label, which ends at 63.

A LeaderWorkerSet's workers are of one whose name has two more than the group's.
"""

POD_SECURITY: Manifest = {
    "runAsNonRoot": True,
    "runAsUser": WORKER_USER,
    "runAsGroup": WORKER_USER,
    "fsGroup": WORKER_USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Manifest = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def base_name(identity: Identity) -> str:
    """Return `NAME-U`, which the names of most children begin with."""
    return f"{identity.name}-{uid5(identity.uid)}"


def attempt_name(identity: Identity, attempt: int) -> str:
    """Return the name of an attempt's Job, Service and NetworkPolicy."""
    return f"{base_name(identity)}-a{attempt}"


def group_name(identity: Identity, revision: str, index: int) -> str:
    """Return the name of a group's set, Service, NetworkPolicy and PodDisruptionBudget; long names are cut."""
    suffix = f"-{uid5(identity.uid)}-{revision}-g{index}"
    return identity.name[: MAX_GROUP_NAME - len(suffix)].rstrip("-") + suffix


def tls_name(identity: Identity) -> str:
    """Return the name of the Secret with the workers' certificate."""
    return f"{base_name(identity)}-tls"


def login_name(identity: Identity) -> str:
    """Return the name of the Secret with the key by which the pods of a group log in to each other."""
    return f"{base_name(identity)}-login"


def best_name(identity: Identity) -> str:
    """Return the name of the ConfigMap with the manifest that an ablation has found."""
    return f"{base_name(identity)}-best"


def stage_evaluation_name(identity: Identity, number: int) -> str:
    """Return the name of the evaluation of a training's stage, by its number from 1; long names are cut."""
    suffix = f"-{uid5(identity.uid)}-s{number}"
    return identity.name[: MAX_OBJECT_NAME - len(suffix)].rstrip("-") + suffix


def judgement_name(identity: Identity, trial: str, tokens: int) -> str:
    """Return the name of the evaluation of an ablation's training where it rests."""
    digest = hashlib.sha256(f"{trial} {tokens}".encode()).digest()
    return f"{identity.name}-{base64.b32encode(digest[:5]).decode().lower()}"


def leaders_name(identity: Identity) -> str:
    """Return the name of the headless Service of the ready leaders."""
    return f"{base_name(identity)}-leaders"


def canary_name(identity: Identity) -> str:
    """Return the name of the headless Service of the ready leaders of a canary."""
    return f"{base_name(identity)}-canary"


def gateway_name(identity: Identity) -> str:
    """Return the name of the gateway's Deployment and ConfigMap."""
    return f"{base_name(identity)}-gateway"


def keys_name(identity: Identity) -> str:
    """Return the name of the Secret with the digests of the API keys that the gateway accepts."""
    return f"{base_name(identity)}-keys"


def object_labels(identity: Identity) -> dict[str, str]:
    """Return the labels of every child of one object."""
    return {
        Label.MANAGED: "true",
        Label.KIND: identity.kind,
        Label.NAME: identity.name,
        Label.UID: identity.uid,
    }


def leader_selector(identity: Identity, routing: Routing | None = None) -> dict[str, str]:
    """Return the labels of all leaders, or of those that get the same requests."""
    leaders = {Label.UID.value: identity.uid, POD_INDEX_LABEL: "0"}
    return leaders | ({Label.ROUTING.value: routing.value} if routing else {})


def child_metadata(
    identity: Identity,
    name: str,
    *,
    role: str | None = None,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    """Return the metadata of a child: owned, so that it goes with its owner even while the operator is down."""
    metadata: Manifest = {
        "name": name,
        "namespace": identity.namespace,
        "labels": object_labels(identity) | ({Label.ROLE.value: role} if role else {}) | dict(labels or {}),
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": identity.kind,
                "name": identity.name,
                "uid": identity.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
    if annotations:
        metadata["annotations"] = dict(annotations)
    return metadata


def revision_of(parts: Mapping[str, Any]) -> str:
    """Return six hex digits that change when the given parts of a specification change."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def headless_service(identity: Identity, name: str, selector: Mapping[str, str], port: int) -> Manifest:
    """Return the Service that gives each pod of a world a host name, from before it is ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": child_metadata(identity, name, labels=selector),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": dict(selector),
            "ports": [{"name": "rendezvous", "port": port, "protocol": "TCP"}],
        },
    }


def secret_manifest(metadata: Manifest, data: Mapping[str, bytes]) -> Manifest:
    """Return a Secret."""
    encoded = {name: base64.b64encode(value).decode() for name, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": encoded}


def literal(value: str) -> str:
    """Return a variable's value as a container gets it whole: the kubelet replaces `$(NAME)`, and `$$` by `$`."""
    return value.replace("$", "$$")


def host(name: str, namespace: str, index: int) -> str:
    """Return the address of a pod of a Job or StatefulSet whose Service has its name."""
    return f"{name}-{index}.{name}.{namespace}.svc"
