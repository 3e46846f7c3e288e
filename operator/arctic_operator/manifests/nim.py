"""The pod of a NIM: NVIDIA's container as its documentation asks for it, and our worker beside it as a native sidecar.

Where each thing comes from:
- "NVIDIA NIM for LLMs" 2.1.6, environment variables: NGC_API_KEY, NIM_SERVER_PORT, the cache in /opt/nim/.cache.
- Its Helm chart nim-llm 1.1.2 (NVIDIA/nim-deploy): a Secret with the key NGC_API_KEY, user and group 1000, a security
  context that is restricted but for a writable root file system, probes of /v1/health/live and /v1/health/ready,
  /dev/shm in memory, NIM_CACHE_PATH, and OUTLINES_CACHE_DIR outside the home folder.
- NVIDIA/k8s-nim-operator of August 2026: the port under both its names, NIM_SERVER_PORT and NIM_HTTP_API_PORT, and
  NIM_TENSOR_PARALLEL_SIZE.
- NIM_SERVED_MODEL_NAME: NVIDIA's multi-LLM notebook in NVIDIA/nim-deploy.
"""

from typing import Any

from arctic_api.common import ClaimVolume, Resources
from arctic_api.inference import ArcticInferenceSpec
from arctic_api.world import InferenceGroup
from arctic_operator.manifests.common import CONTAINER_SECURITY, Manifest, literal
from arctic_operator.manifests.worker import claim_mount, claim_volume, container_resources, pod_devices
from arctic_operator.settings import Settings

CONTAINER = "nim"
CACHE = "/opt/nim/.cache"
USER = 1000
NGC_API_KEY = "NGC_API_KEY"
SIDECAR_RESOURCES = Resources.model_validate(
    {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}
)
NOT_THE_WORKERS = {"environment": None, "volumes": None, "device_claims": None}
"""What of a template is the NIM's, and not of the worker beside it."""
STARTUP_SECONDS = 5
STARTUP_FAILURES = 6 * 3600 // STARTUP_SECONDS
"""NVIDIA's chart gives half an hour, which the download of a large model exceeds: `startDeadline` tells of that."""
HANG_SECONDS = 30
"""What a container that does not live any more gets for its requests before it is started again."""


def nim_template(worker: Manifest, group: InferenceGroup, spec: ArcticInferenceSpec, settings: Settings) -> Manifest:
    """Return the template of a NIM's pod from that of our worker alone, which has nothing of the author's containers.

    The worker is a native sidecar, which begins before the NIM and ends after it: the kubelet asks it to drain before
    it stops the NIM, by a hook that needs no program in NVIDIA's image. What an author says of environment, claims
    and resources is said of the NIM.
    """
    pod = worker["spec"]
    (sidecar,) = pod["containers"]
    claims = _claims(spec)
    volumes = [claim_volume(name, claim) for name, claim in claims.items()]
    if spec.engine.cache_claim is None:
        volumes.append({"name": "nim-cache", "emptyDir": {}})
    return worker | {
        "spec": pod
        | {
            "initContainers": [sidecar | {"restartPolicy": "Always"}],
            "containers": [_container(group, spec, claims, settings)],
            "volumes": [*pod["volumes"], *volumes],
            **pod_devices(spec.template),
        }
    }


def _claims(spec: ArcticInferenceSpec) -> dict[str, ClaimVolume]:
    """Return the claims that the NIM mounts, by the names of their volumes."""
    mounted = {claim.mount_path: claim for claim in (spec.template and spec.template.volumes) or ()}
    mounted.pop(CACHE, None)
    claims = {f"nim-claim-{index}": claim for index, claim in enumerate(mounted.values())}
    if spec.engine.cache_claim is not None:
        claims["nim-cache"] = ClaimVolume(claim_name=spec.engine.cache_claim, mount_path=CACHE, read_only=False)
    return claims


def _container(
    group: InferenceGroup, spec: ArcticInferenceSpec, claims: dict[str, ClaimVolume], settings: Settings
) -> Manifest:
    ports = group.ports
    return {
        "name": CONTAINER,
        "image": spec.engine.image,
        "imagePullPolicy": settings.image_pull_policy,
        "env": _environment(group, spec),
        "ports": [{"name": "http", "containerPort": ports.http}],
        "resources": container_resources(spec.resources or settings.worker_resources, spec.template),
        # Restricted, but for the root file system: the container writes into its own folders.
        "securityContext": CONTAINER_SECURITY
        | {"readOnlyRootFilesystem": False, "runAsUser": USER, "runAsGroup": USER},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "lifecycle": {"preStop": {"httpGet": {"path": group.drained_path, "port": ports.metrics}}},
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  the container's own
            *(claim_mount(name, claim) for name, claim in claims.items()),
            *([{"name": "nim-cache", "mountPath": CACHE}] if "nim-cache" not in claims else []),
        ],
        **_probes(ports.http),
    }


def _environment(group: InferenceGroup, spec: ArcticInferenceSpec) -> list[Manifest]:
    """Return an author's variables, and after them what the rest of the manifest says, which wins."""
    ours = {
        "NIM_CACHE_PATH": CACHE,
        "NIM_SERVER_PORT": str(group.ports.http),
        "NIM_HTTP_API_PORT": str(group.ports.http),
        "NIM_SERVED_MODEL_NAME": group.served_name,
        "NIM_TENSOR_PARALLEL_SIZE": str(spec.parallelism.tensor),
    }
    author = {item.name: item.value for item in (spec.template and spec.template.environment) or ()}
    defaults = {"OUTLINES_CACHE_DIR": "/tmp/outlines"}  # noqa: S108  the container's own
    variables = defaults | author | ours
    environment: dict[str, Any] = {name: {"value": literal(value)} for name, value in variables.items()}
    if spec.engine.credentials:
        key = {"name": spec.engine.credentials.secret_name, "key": NGC_API_KEY}
        environment[NGC_API_KEY] = {"valueFrom": {"secretKeyRef": key}}
    return [{"name": name, **value} for name, value in environment.items()]


def _probes(port: int) -> Manifest:
    live = {"httpGet": {"path": "/v1/health/live", "port": port}}
    ready = {"httpGet": {"path": "/v1/health/ready", "port": port}}
    return {
        "startupProbe": ready
        | {"periodSeconds": STARTUP_SECONDS, "failureThreshold": STARTUP_FAILURES, "timeoutSeconds": 3},
        "livenessProbe": live
        | {
            "periodSeconds": 10,
            "failureThreshold": 6,
            "timeoutSeconds": 5,
            "terminationGracePeriodSeconds": HANG_SECONDS,
        },
        "readinessProbe": ready | {"periodSeconds": 5, "failureThreshold": 3, "timeoutSeconds": 5},
    }
