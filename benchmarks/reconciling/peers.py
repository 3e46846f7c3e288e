"""Kubeflow's operators as processes beside the control plane, with their own definitions and admission webhooks.

Each asks the cluster for its certificates and finds them in a folder, where the kubelet would mount them: here they are
put there. Their Services' addresses lead to this machine, as all of the cluster's do.
"""

import base64
import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from arctic_cluster import binaries
from arctic_cluster.binaries import Controller
from arctic_cluster.certificates import Authority
from arctic_cluster.errors import ClusterError
from benchmarks.reconciling.objects import NAMESPACE, PLAN, name_of
from benchmarks.reconciling.plane import Plane
from benchmarks.reconciling.race import Kind

Manifest = dict[str, Any]

CERTIFICATES = Path("/tmp/k8s-webhook-server/serving-certs")  # noqa: S108  where they look for them
READY_SECONDS = 90.0
RAISED = 1000
"""Requests a second, and at once, of a client whose limits were raised."""
IMAGE = "arctic/worker:0.1.0"


@dataclass(frozen=True)
class Manager:
    """How one of Kubeflow's operators is installed."""

    module: str
    namespace: str
    service: str
    secret: str
    configuration: str
    """Name of its validating webhooks."""


TRAINING_OPERATOR = Manager(
    "training-operator",
    "kubeflow",
    "training-operator",
    "training-operator-webhook-cert",
    "validator.training-operator.kubeflow.org",
)
TRAINER = Manager(
    "trainer",
    "kubeflow-system",
    "kubeflow-trainer-controller-manager",
    "kubeflow-trainer-webhook-cert",
    "validator.trainer.kubeflow.org",
)
JOBSET_NAMESPACE = "jobset-system"


def _pods(*, name: str) -> Manifest:
    """Return the template of a worker's pod."""
    return {"spec": {"containers": [{"name": name, "image": IMAGE, "command": ["python3", "train.py"]}]}}


def pytorch_job(index: int) -> Manifest:
    """Return a PyTorchJob of two pods."""
    replica = {"replicas": 1, "restartPolicy": "Never", "template": _pods(name="pytorch")}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name_of(index), "namespace": NAMESPACE},
        "spec": {"pytorchReplicaSpecs": {"Master": replica, "Worker": replica}},
    }


def train_job(index: int) -> Manifest:
    """Return a TrainJob of two pods."""
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name_of(index), "namespace": NAMESPACE},
        "spec": {
            "runtimeRef": {"name": "torch-distributed"},
            "trainer": {"numNodes": 2, "image": IMAGE, "command": ["python3", "train.py"]},
        },
    }


def _condition(manifest: Manifest) -> bool:
    conditions = manifest.get("status", {}).get("conditions") or ()
    return any(condition["type"] == "Running" and condition["status"] == "True" for condition in conditions)


PYTORCH_JOBS = Kind(
    f"/apis/kubeflow.org/v1/namespaces/{NAMESPACE}/pytorchjobs",
    pytorch_job,
    "training.kubeflow.org/job-name",
    _condition,
)
TRAIN_JOBS = Kind(
    f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs",
    train_job,
    "jobset.sigs.k8s.io/jobset-name",
    # A TrainJob never says that it runs: its pods alone count.
    lambda _: True,
)


def build() -> None:
    """Build all of them."""
    for module in (TRAINING_OPERATOR.module, TRAINER.module, "jobset"):
        binaries.controller(module)
    binaries.controller(TRAINER.module, ".")


@contextmanager
def training_operator(plane: Plane) -> Iterator[tuple[Kind, list[int]]]:
    """Run training-operator as shipped."""
    controller = binaries.controller(TRAINING_OPERATOR.module)
    with _running(plane, TRAINING_OPERATOR, controller) as pid:
        yield PYTORCH_JOBS, [pid]


def trainer(*, raised: bool) -> Callable[[Plane], Any]:
    """Return what runs Trainer and JobSet as shipped, or with their clients' limits raised."""

    @contextmanager
    def contestant(plane: Plane) -> Iterator[tuple[Kind, list[int]]]:
        limits = [f"--kube-api-qps={RAISED}", f"--kube-api-burst={RAISED}"] if raised else []
        shipped = binaries.controller(TRAINER.module)
        program = binaries.controller(TRAINER.module, ".").program if raised else shipped.program
        with ExitStack() as stack:
            jobset = stack.enter_context(_jobset(plane, limits))
            pid = stack.enter_context(_running(plane, TRAINER, Controller(program, shipped.source), limits))
            runtime = shipped.source / "manifests" / "base" / "runtimes" / "torch_distributed.yaml"
            _insist(lambda: plane.apply([yaml.safe_load(runtime.read_text())]))
            yield TRAIN_JOBS, [pid, jobset]

    return contestant


@contextmanager
def _running(plane: Plane, manager: Manager, controller: Controller, flags: list[str] | None = None) -> Iterator[int]:
    """Install one of Kubeflow's operators and run it until it is ready, and for a while."""
    base = controller.source / "manifests" / "base"
    _define(plane, sorted((base / "crds").glob("*.org_*.yaml")))
    address = str(PLAN.services[50])
    plane.apply([_namespace(manager.namespace)])
    plane.apply(
        [
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": manager.secret, "namespace": manager.namespace},
            },
            _service(manager.service, manager.namespace, address, 9443),
            *_webhooks(base / "webhook" / "manifests.yaml", manager),
        ]
    )
    shutil.rmtree(CERTIFICATES, ignore_errors=True)
    environment = {"KUBECONFIG": str(plane.kubeconfig), "MY_POD_NAMESPACE": manager.namespace}
    try:
        with plane.running(manager.module, [str(controller.program), *(flags or ())], environment) as pid:
            _until(f"{manager.module} has certificates", lambda: _mount(plane, manager))
            _until(f"{manager.module} is ready", lambda: _answers("http://127.0.0.1:8081/readyz"))
            yield pid
    finally:
        shutil.rmtree(CERTIFICATES, ignore_errors=True)


@contextmanager
def _jobset(plane: Plane, limits: list[str]) -> Iterator[int]:
    """Run JobSet's controller, with certificates of the benchmark's own."""
    controller = binaries.controller("jobset")
    config = controller.source / "config" / "components"
    folder = plane.folder / "jobset"
    authority, address = Authority(folder), str(PLAN.services[51])
    authority.issue("tls", "jobset", hosts=[f"jobset-webhook-service.{JOBSET_NAMESPACE}.svc"])
    settings = {
        "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "webhook": {"port": 9444, "certDir": str(folder)},
        "metrics": {"bindAddress": "0"},
        "health": {"healthProbeBindAddress": "127.0.0.1:8082"},
    }
    (folder / "config.yaml").write_text(json.dumps(settings))
    _define(plane, sorted((config / "crd" / "bases").glob("*.yaml")))
    plane.apply([_namespace(JOBSET_NAMESPACE)])
    plane.apply([_service("jobset-webhook-service", JOBSET_NAMESPACE, address, 9444)])
    command = [str(controller.program), f"--config={folder / 'config.yaml'}", *limits]
    with plane.running("jobset", command, {"KUBECONFIG": str(plane.kubeconfig)}) as pid:
        _until("JobSet is ready", lambda: _answers("http://127.0.0.1:8082/readyz"))
        plane.apply(_jobset_webhooks(config / "webhook", authority))
        yield pid


def _jobset_webhooks(folder: Path, authority: Authority) -> list[Manifest]:
    """Return JobSet's webhook configurations, with its own patches."""
    configurations = [document for document in yaml.safe_load_all((folder / "manifests.yaml").read_text()) if document]
    bundle = base64.b64encode(authority.certificate.read_bytes()).decode()
    for configuration in configurations:
        what = configuration["kind"].removesuffix("WebhookConfiguration").lower()
        for patch in yaml.safe_load((folder / "patches" / f"{what}-patch.yaml").read_text()):
            configuration["webhooks"][int(patch["path"].rpartition("/")[2])] = patch["value"]
        configuration["metadata"]["name"] = f"jobset-{what}-webhook-configuration"
        for webhook in configuration["webhooks"]:
            _call(webhook, "jobset-webhook-service", JOBSET_NAMESPACE, 9444)
            webhook["clientConfig"]["caBundle"] = bundle
    return configurations


def _webhooks(file: Path, manager: Manager) -> list[Manifest]:
    """Return an operator's webhook configuration as its own patches make it."""
    [configuration] = [document for document in yaml.safe_load_all(file.read_text()) if document]
    configuration["metadata"]["name"] = manager.configuration
    for webhook in configuration["webhooks"]:
        _call(webhook, manager.service, manager.namespace, 9443)
    return [configuration]


def _call(webhook: Manifest, service: str, namespace: str, port: int) -> None:
    webhook["clientConfig"]["service"] |= {"name": service, "namespace": namespace, "port": port}


def _service(name: str, namespace: str, address: str, port: int) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": address, "ports": [{"port": port, "protocol": "TCP"}]},
    }


def _namespace(name: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def _define(plane: Plane, files: list[Path]) -> None:
    plane.define([document for file in files for document in yaml.safe_load_all(file.read_text()) if document])


def _mount(plane: Plane, manager: Manager) -> bool:
    """Put the certificates that an operator has made where it looks for them, once it has."""
    secret = json.loads(plane.kubectl("get", "secret", manager.secret, "-n", manager.namespace, "-o", "json"))
    data = secret.get("data") or {}
    if "tls.crt" not in data:
        return False
    CERTIFICATES.mkdir(parents=True, exist_ok=True)
    for name, value in data.items():
        (CERTIFICATES / name).write_bytes(base64.b64decode(value))
    return True


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:  # noqa: S310  this machine's
            return bool(answer.status == 200)
    except OSError:
        return False


def _until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"it never came that {what}")
        time.sleep(0.3)


def _insist(act: Callable[[], object]) -> None:
    """Act again while it fails, as long as that may pass."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            act()
        except ClusterError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return
