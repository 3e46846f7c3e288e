"""The pod of a worker, and the NetworkPolicy around its world: what training and inference have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

from arctic_api.common import ClaimVolume, Resources, WorkerTemplate
from arctic_api.engine_options import EngineName
from arctic_api.log_format import LOG_FORMAT_VARIABLE
from arctic_api.world import (
    NODE_RANK_VARIABLE,
    TLS_FOLDER,
    TRACES_VARIABLE,
    WORLD_VARIABLE,
    PodWorld,
    Ports,
)
from arctic_operator.manifests.common import (
    CONTAINER_SECURITY,
    OPERATOR_LABELS,
    POD_SECURITY,
    Manifest,
    child_metadata,
    literal,
    tls_name,
)
from arctic_operator.observed import WORKER_CONTAINER, Identity
from arctic_operator.settings import EngineDefaults, Settings

HOME = "/home/arctic"
TEMPORARY = "/tmp"  # noqa: S108  the container's own
HOSTNAME_TOPOLOGY = "kubernetes.io/hostname"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
HEAVIEST = 100
"""Weight of the narrowest domain; no weight may be more."""


def worker_template(
    identity: Identity,
    settings: Settings,
    *,
    module: str,
    engine: EngineName | None = None,
    world: PodWorld,
    rank_field: str,
    labels: Mapping[str, str],
    selector: Mapping[str, str],
    ports: Mapping[str, int],
    image: str | None,
    claims: Sequence[ClaimVolume],
    resources: Resources | None,
    grace_seconds: int,
    priority_class: str | None,
    template: WorkerTemplate | None,
    spec: Mapping[str, Any],
    secrets: Mapping[str, str] | None = None,
) -> Manifest:
    """Return a pod template that meets the restricted Pod Security standard.

    `engine` is what an inference group runs, `selector` names the pods of the same world, of which a node takes one,
    and `spec` is added to the pod's specification. `secrets` says which Secrets, by name, are mounted whole in which
    folders, besides the certificates.
    """
    template = template or WorkerTemplate()
    folders = {"tls": (tls_name(identity), TLS_FOLDER)} | {
        f"secret-{index}": pair for index, pair in enumerate((secrets or {}).items())
    }
    defaults = settings.engines.get(engine, EngineDefaults()) if engine else EngineDefaults()
    volumes = [*settings.worker_volumes, *defaults.volumes, *claims, *(template.volumes or ())]
    mounted = {claim.mount_path: claim for claim in volumes}
    environment = {
        "HOME": HOME,
        "TMPDIR": TEMPORARY,
        LOG_FORMAT_VARIABLE: settings.log_format,
        **({TRACES_VARIABLE: settings.tracing_endpoint} if settings.tracing_endpoint else {}),
        "TRITON_CACHE_DIR": f"{HOME}/.triton",
        "TORCH_EXTENSIONS_DIR": f"{HOME}/.torch_extensions",
        **{item.name: item.value for item in settings.worker_environment},
        **{item.name: item.value for item in template.environment or ()},
        WORLD_VARIABLE: world.model_dump_json(by_alias=True),
    }
    container: Manifest = {
        "name": WORKER_CONTAINER,
        "image": image or defaults.image or settings.worker_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": [*(defaults.command or settings.worker_command), "-m", module],
        "env": [
            *({"name": name, "value": literal(value)} for name, value in environment.items()),
            {"name": NODE_RANK_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": rank_field}}},
        ],
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "resources": container_resources(resources or settings.worker_resources, template),
        "securityContext": CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            *({"name": name, "mountPath": folder, "readOnly": True} for name, (_, folder) in folders.items()),
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  the container's own
            {"name": "home", "mountPath": HOME},
            {"name": "tmp", "mountPath": TEMPORARY},
            *(claim_mount(f"claim-{index}", claim) for index, claim in enumerate(mounted.values())),
        ],
        **_probes(world.ports),
    }
    return {
        "metadata": {
            "labels": {**(template.labels or {}), **labels},
            "annotations": dict(template.annotations or {}),
        },
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": POD_SECURITY,
            "terminationGracePeriodSeconds": grace_seconds,
            "affinity": _affinity(template, selector),
            "nodeSelector": dict(template.node_selector or {}),
            "tolerations": [toleration.wire() for toleration in template.tolerations or ()],
            "imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets],
            **({"priorityClassName": priority_class} if priority_class else {}),
            **pod_devices(template),
            "containers": [container],
            "volumes": [
                *(
                    {"name": name, "secret": {"secretName": secret, "defaultMode": 0o440}}
                    for name, (secret, _) in folders.items()
                ),
                {"name": "shm", "emptyDir": {"medium": "Memory"}},
                {"name": "home", "emptyDir": {}},
                {"name": "tmp", "emptyDir": {}},
                *(claim_volume(f"claim-{index}", claim) for index, claim in enumerate(mounted.values())),
            ],
            **spec,
        },
    }


def container_resources(resources: Resources | None, template: WorkerTemplate | None) -> Manifest:
    """Return what a container gets, with the devices that its pod claims."""
    claims = [{"name": claim.name} for claim in (template and template.device_claims) or ()]
    return (resources or Resources()).wire() | ({"claims": claims} if claims else {})


def pod_devices(template: WorkerTemplate | None) -> Manifest:
    """Return the part of a pod's specification that claims devices."""
    claims = [
        {"name": claim.name, "resourceClaimTemplateName": claim.template_name}
        for claim in (template and template.device_claims) or ()
    ]
    return {"resourceClaims": claims} if claims else {}


def claim_mount(name: str, claim: ClaimVolume) -> Manifest:
    """Return a container's mount of the volume of that name."""
    return {"name": name, "mountPath": claim.mount_path, "readOnly": claim.read_only}


def claim_volume(name: str, claim: ClaimVolume) -> Manifest:
    """Return a pod's volume of that name."""
    reference = {"claimName": claim.claim_name, "readOnly": claim.read_only}
    return {"name": name, "persistentVolumeClaim": reference}


def _probes(ports: Ports) -> Manifest:
    live = {"httpGet": {"path": "/livez", "port": ports.metrics}}
    ready = {"httpGet": {"path": "/readyz", "port": ports.metrics}}
    return {
        "startupProbe": live | {"periodSeconds": 5, "failureThreshold": 60, "timeoutSeconds": 3},
        "livenessProbe": live | {"periodSeconds": 10, "failureThreshold": 6, "timeoutSeconds": 5},
        "readinessProbe": ready | {"periodSeconds": 2, "failureThreshold": 3, "timeoutSeconds": 5},
    }


def _affinity(template: WorkerTemplate, selector: Mapping[str, str]) -> Manifest:
    """Add to a manifest's own affinity that no node takes two pods of one world, and what they are to share."""
    merged = template.affinity.wire() if template.affinity else {}
    anti = merged.setdefault("podAntiAffinity", {})
    anti[REQUIRED] = [*anti.get(REQUIRED, ()), _beside(HOSTNAME_TOPOLOGY, selector)]
    if template.topology:
        # A wider domain counts half: what is near in a narrow one is near in the wide ones too.
        near = [
            {"weight": max(1, HEAVIEST >> level), "podAffinityTerm": _beside(key, selector)}
            for level, key in enumerate(template.topology)
        ]
        affinity = merged.setdefault("podAffinity", {})
        affinity[PREFERRED] = [*affinity.get(PREFERRED, ()), *near]
    return merged


def _beside(topology: str, selector: Mapping[str, str]) -> Manifest:
    """Return a term about the nodes that agree in a label with that of a pod of the world."""
    return {"labelSelector": {"matchLabels": dict(selector)}, "topologyKey": topology}


def network_policy(
    identity: Identity,
    name: str,
    settings: Settings,
    selector: Mapping[str, str],
    clients: Mapping[int, Mapping[str, str]] | None = None,
) -> Manifest:
    """Return the policy of one world: its pods talk to each other, the operator calls them, anyone may scrape them.

    torch.distributed authenticates nobody, so a stranger must not reach it. `clients` opens further ports to pods with
    the given labels.
    """
    ports = Ports()
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.namespace}},
        "podSelector": {"matchLabels": OPERATOR_LABELS},
    }
    ingress: list[Manifest] = [
        {"from": [{"podSelector": {"matchLabels": dict(selector)}}]},
        {"from": [operator], "ports": [{"port": ports.control, "protocol": "TCP"}]},
        {"ports": [{"port": ports.metrics, "protocol": "TCP"}]},
        *(
            {"from": [{"podSelector": {"matchLabels": dict(labels)}}], "ports": [{"port": port, "protocol": "TCP"}]}
            for port, labels in (clients or {}).items()
        ),
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": child_metadata(identity, name, labels=selector),
        "spec": {
            "podSelector": {"matchLabels": dict(selector)},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }
