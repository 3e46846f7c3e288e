"""A real control plane whose nodes are KWOK's: the local cluster's own programs with its own command lines.

It lives in a network of its own, which ends with the process: pods get addresses that lead back to this machine, so
that workers can be played on them.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Network
from pathlib import Path

from objects import until_established

from arctic_cluster import addresses, binaries, config, shell, state
from arctic_cluster.certificates import Authority
from arctic_cluster.errors import ClusterError
from arctic_cluster.manifests import Manifest

NODES = 20
ADDRESS = "benchmarks.local/address"
"""Annotation of the pods whose first one gets that address."""
START_SECONDS = 120.0
CLONE_NEWNET = 0x40000000
RANKS = "batch.kubernetes.io/job-completion-index"
NAMES = ("controller-manager", "scheduler")

READY = '.status.conditions.[] | select( .type == "Ready" ) | .status'
NODE_STAGE = """
{{ $now := Now }}
conditions:
{{ range NodeConditions }}
- lastHeartbeatTime: {{ $now | Quote }}
  lastTransitionTime: {{ $now | Quote }}
  message: {{ .message | Quote }}
  reason: {{ .reason | Quote }}
  status: {{ .status | Quote }}
  type: {{ .type | Quote }}
{{ end }}
addresses:
- {address: {{ NodeIP | Quote }}, type: InternalIP}
allocatable: {cpu: "1000", memory: 1Ti, pods: "10000"}
capacity: {cpu: "1000", memory: 1Ti, pods: "10000"}
"""
POD_STAGE = """
{{ $now := Now }}
{{ $address := "" }}
{{ with .metadata.annotations }}
{{ if eq (or (index . "RANKS") "0") "0" }}{{ $address = or (index . "ADDRESS") "" }}{{ end }}
{{ end }}
conditions:
- {lastTransitionTime: {{ $now | Quote }}, status: "True", type: Initialized}
- {lastTransitionTime: {{ $now | Quote }}, status: "True", type: Ready}
- {lastTransitionTime: {{ $now | Quote }}, status: "True", type: ContainersReady}
containerStatuses:
{{ range .spec.containers }}
- image: {{ .image | Quote }}
  name: {{ .name | Quote }}
  ready: true
  restartCount: 0
  state: {running: {startedAt: {{ $now | Quote }}}}
{{ end }}
hostIP: {{ NodeIPWith .spec.nodeName | Quote }}
{{ if $address }}
podIP: {{ $address | Quote }}
{{ else }}
podIP: {{ PodIPWith .spec.nodeName false .metadata.uid .metadata.name .metadata.namespace | Quote }}
{{ end }}
phase: Running
startTime: {{ $now | Quote }}
""".replace("RANKS", RANKS).replace("ADDRESS", ADDRESS)


def enter_own_network(plan: addresses.Addresses) -> None:
    """Move this process into a new network, in which all addresses of the cluster are its own. Needs root."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "a network of its own can't be made: this benchmark needs root")
    shell.run("ip", "link", "set", "lo", "up")
    shell.run("ip", "address", "add", f"{plan.gateway}/32", "dev", "lo")
    for network in (plan.pods, plan.services):
        shell.run("ip", "route", "add", "local", str(network), "dev", "lo")


def halves(plan: addresses.Addresses) -> tuple[IPv4Network, IPv4Network]:
    """Return the addresses of pods that the benchmark gives, and of those that KWOK does."""
    first, second = plan.pods.subnets()
    return first, second


def stages() -> list[Manifest]:
    """Return what KWOK does: nodes are ready, pods run at once and for ever, and go when they are told to."""
    return [
        _stage(
            "node-initialize",
            "Node",
            [
                {
                    "key": '.status.conditions.[] | select( .type == "Ready" ) | .status',
                    "operator": "NotIn",
                    "values": ["True"],
                }
            ],
            {"statusTemplate": NODE_STAGE},
        ),
        _stage(
            "pod-ready",
            "Pod",
            [
                {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"},
                {"key": ".status.podIP", "operator": "DoesNotExist"},
            ],
            {"statusTemplate": POD_STAGE},
        ),
        _stage(
            "pod-delete",
            "Pod",
            [{"key": ".metadata.deletionTimestamp", "operator": "Exists"}],
            {"finalizers": {"empty": True}, "delete": True},
        ),
    ]


def _stage(name: str, kind: str, expressions: list[Manifest], following: Manifest) -> Manifest:
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": expressions},
            "next": following,
        },
    }


def node(number: int) -> Manifest:
    """Return one of KWOK's nodes."""
    name = f"kwok-{number}"
    metadata = {"name": name, "labels": {"kubernetes.io/hostname": name}, "annotations": {"kwok.x-k8s.io/node": "fake"}}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata}


class Plane:
    """One control plane in a folder; a context manager, which ends everything."""

    def __init__(self, folder: Path, plan: addresses.Addresses) -> None:
        """`plan` says which addresses are taken, which this process has already."""
        self.folder = folder
        ports = state.Ports(api=6443, etcd=2379, etcd_peer=2380)
        self._at = config.Layout(folder, binaries.folder(), plan, ports)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def kubeconfig(self) -> Path:
        """An administrator's kubeconfig."""
        return self._at.kubeconfig("admin")

    @property
    def server(self) -> str:
        """The API server's URL."""
        return self._at.server

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self._at.pki

    def __enter__(self) -> "Plane":
        """Start everything and return when all nodes are ready."""
        self.folder.mkdir(parents=True)
        self._at.logs.mkdir()
        with contextlib.ExitStack() as stack:
            stack.callback(self.stop)
            self._write_credentials()
            for component, command in config.control_plane(self._at).items():
                self.spawn(component, command)
                if component == "kube-apiserver":
                    self._until("the API server is ready", lambda: self.kubectl("get", "--raw=/readyz") == "ok")
            settings = self.folder / "kwok.yaml"
            options = {
                "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
                "kind": "KwokConfiguration",
                "options": {
                    "cidr": str(halves(self._at.addresses)[1]),
                    "nodeIP": str(self._at.addresses.gateway),
                    "manageNodesWithAnnotationSelector": "kwok.x-k8s.io/node=fake",
                    "nodeLeaseDurationSeconds": 40,
                    "nodeLeaseParallelism": 4,
                    "podPlayStageParallelism": 4,
                    "nodePlayStageParallelism": 4,
                },
            }
            settings.write_text("\n---\n".join(json.dumps(document) for document in (options, *stages())))
            kwok = binaries.controller("kwok").program
            self.spawn("kwok", [str(kwok), f"--kubeconfig={self.kubeconfig}", f"--config={settings}"])
            self.apply([node(number) for number in range(NODES)])
            self._until("all nodes are ready", self._nodes_ready)
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End everything."""
        self.stop()

    def stop(self) -> None:
        """Kill all that runs, the last started first."""
        for name in reversed(list(self._running)):
            self.kill(name)

    def spawn(self, name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> int:
        """Start a process that writes to a log of that name, and return its id."""
        with (self._at.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | (environment or {})
            )
        self._running[name] = process
        return process.pid

    def kill(self, name: str, with_signal: int = signal.SIGKILL) -> None:
        """End one process."""
        process = self._running.pop(name)
        process.send_signal(with_signal)
        process.wait(30)

    @contextlib.contextmanager
    def running(self, name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> Iterator[int]:
        """Run a process for a while; its id is given."""
        pid = self.spawn(name, command, environment)
        try:
            yield pid
        finally:
            self.kill(name)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as an administrator and return what it printed."""
        command = [str(self._at.binaries / "kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments]
        return shell.run(*command, stdin=stdin)

    def apply(self, documents: Sequence[Manifest]) -> None:
        """Apply objects."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(listed))

    def define(self, definitions: Sequence[Manifest]) -> None:
        """Apply definitions of custom resources and return when what they define is served."""
        self.apply(definitions)
        until_established(self.kubectl, *(f"crd/{definition['metadata']['name']}" for definition in definitions))

    def _nodes_ready(self) -> bool:
        found = json.loads(self.kubectl("get", "nodes", "-o", "json"))["items"]
        ready = [
            condition
            for each in found
            for condition in each["status"].get("conditions") or ()
            if condition["type"] == "Ready" and condition["status"] == "True"
        ]
        return len(ready) == NODES

    def _until(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            for name, process in self._running.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} has ended: its log is {self._at.logs / name}.log")
            with contextlib.suppress(ClusterError):
                if condition():
                    return
            if time.monotonic() > deadline:
                raise RuntimeError(f"it never came that {what}: the logs are in {self._at.logs}")
            time.sleep(0.2)

    def _write_credentials(self) -> None:
        at, plan = self._at, self._at.addresses
        authority = Authority(at.pki)
        authority.service_account_key()
        hosts = [str(plan.gateway), str(plan.kubernetes_service), "127.0.0.1", "localhost"]
        authority.issue("apiserver", "kube-apiserver", ["system:masters"], hosts)
        authority.issue("etcd", "etcd", hosts=["127.0.0.1", "localhost"])
        for component in NAMES:
            authority.issue(component, f"system:kube-{component}")
        authority.issue("admin", "arctic-admin", ["system:masters"])
        for user in (*NAMES, "admin"):
            pems = [(at.pki / file).read_bytes() for file in ("ca.crt", f"{user}.crt", f"{user}.key")]
            at.kubeconfig(user).write_text(config.kubeconfig(f"arctic-{plan.name}", at.server, user, *pems))
