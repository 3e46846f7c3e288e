"""One local cluster: starting it, ending it, and working with it. The effects' order is here; what they are is not."""

import concurrent.futures
import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from arctic_cluster import (
    addresses,
    binaries,
    cgroups,
    config,
    host,
    image,
    manifests,
    network,
    process,
    requirements,
    shell,
    state,
)
from arctic_cluster.config import Layout
from arctic_cluster.environment import ENGINES, made_for_engines
from arctic_cluster.errors import ClusterError
from arctic_cluster.files import locked, readable_by_all, write_atomically
from arctic_cluster.paths import CLUSTERS, CORPUS, MODELS, STORE, default_volumes
from arctic_cluster.prepare import prepare
from arctic_cluster.progress import Progress
from arctic_cluster.state import State

DEFAULT_NAME = "demo"
DEFAULT_NODES = 2
_LOCK = Path("/run/lock/arctic-cluster.lock")
_DAEMON_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
_FIRST_API_PORT = 6443
_FIRST_ETCD_PORT = 23790
_STEPS_OF_A_START = 4
# GiB: every node unpacks the image.
_NEEDED_FOR_A_CLUSTER = 3


class Cluster:
    """The cluster `name` of this machine, running or not."""

    def __init__(self, name: str = DEFAULT_NAME) -> None:
        """`name` is at most 20 of a-z, 0-9 and '-'."""
        addresses.check_name(name)
        self.name = name
        self._run = state.run_folder(name)

    # -- its life

    def up(self, nodes: int | None = None, volumes: Path | None = None) -> bool:
        """Start the cluster; what is left of a broken one is removed first.

        Returns False when it runs already: then only its Python environment is brought up to date. `volumes` is the
        host folder whose `arctic-corpus`, `arctic-models` and `arctic-store` the claims mount. What is not given is
        as it was, else by default.
        """
        known = state.load(self.name)
        before = (known.nodes, known.volumes) if known else (DEFAULT_NODES, default_volumes())
        wanted = before[0] if nodes is None else nodes, (volumes or before[1]).absolute()
        addresses.plan(self.name, 0, wanted[0])
        running = self._running(wanted)
        progress, environment = prepare(further_steps=0 if running else _STEPS_OF_A_START)
        with locked(_LOCK):
            # Asked again: preparing takes its time, and another command may have started or ended the cluster.
            if self._running(wanted):
                self._link_environment(environment)
                return False
            self._remove()
            requirements.check_space(CLUSTERS, _NEEDED_FOR_A_CLUSTER)
            self._start(self._plan(*wanted), environment, Progress(_STEPS_OF_A_START) if running else progress)
        return True

    def _running(self, wanted: tuple[int, Path]) -> bool:
        """Whether it runs; raises when it runs with other nodes or volumes than wanted."""
        found = state.load(self.name)
        if found is None or not found.running():
            return False
        if wanted != (found.nodes, found.volumes):
            raise ClusterError(
                f"cluster {self.name} runs with {found.nodes} nodes and the volumes in {found.volumes}; "
                f"to change that, take it down first (`arctic cluster down --name {self.name}`)"
            )
        return True

    def down(self) -> bool:
        """End the cluster and leave no trace of it but the volumes; False when there was none."""
        requirements.check_root()
        with locked(_LOCK):
            return self._remove()

    def stop(self, component: str) -> None:
        """Kill one component, such as kube-apiserver or node1-kubelet; `start` starts it again."""
        current = self._state()
        process.kill([current.processes[self._known(component, current)]])

    def start(self, component: str) -> None:
        """Start a component that was stopped."""
        current = self._state()
        if process.alive(current.processes[self._known(component, current)]):
            return
        self._spawn(current, component)

    # -- working with it

    @property
    def kubeconfig(self) -> Path:
        """An administrator's kubeconfig."""
        return self._run / "kubeconfig"

    @property
    def nodes(self) -> tuple[addresses.Node, ...]:
        """The nodes, in the order of their numbers."""
        return self._state().addresses.nodes

    @property
    def binaries(self) -> Path:
        """The folder with the kubectl and helm that fit the cluster."""
        return self._state().binaries

    @property
    def image(self) -> str:
        """The image that every node has: the host's distribution with Python."""
        return self._state().image

    @property
    def volumes(self) -> Path:
        """The host folder of the claims' corpus, models and store."""
        return self._state().volumes

    @property
    def logs(self) -> Path:
        """The folder with a log for each component."""
        return self._run / "logs"

    def command(self, program: str, *arguments: str) -> list[str]:
        """The command line that runs kubectl or helm as an administrator."""
        return [*_past_proxies(os.environ), str(self.binaries / program), f"--kubeconfig={self.kubeconfig}", *arguments]

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as an administrator and return what it printed."""
        return shell.run(*self.command("kubectl", *arguments), stdin=stdin)

    def helm(self, *arguments: str) -> str:
        """Run helm as an administrator and return what it printed."""
        return shell.run(*self.command("helm", *arguments))

    def helm_values(self) -> list[str]:
        """Arguments to helm for what the chart's values for local clusters cannot know.

        The annotation restarts the operator on an upgrade after the mounted environment has changed.
        """
        environment = (self._run / "environment").resolve().name
        port = self._state().ports.api
        return [
            f"--set-string=podAnnotations.environment={environment}",
            f"--set=networkPolicy.apiServerPorts={{443,{port}}}",
        ]

    def apply(self, documents: Iterable[manifests.Manifest]) -> None:
        """Apply objects, on the server's side."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(listed))

    def create_claims(self, namespace: str) -> None:
        """Give `namespace` the claims that workers mount: environment, corpus, models and store."""
        self.apply(d for claim in self._claims() for d in manifests.claim_with_volume(claim, namespace))

    def delete_namespace(self, namespace: str, *, wait: bool = True) -> None:
        """Delete a namespace and the volumes of its claims; the host folders stay.

        Kubernetes takes ten seconds and more for it, which `wait` false leaves to go on by itself.
        """
        how = ("--ignore-not-found", f"--wait={str(wait).lower()}")
        self.kubectl("delete", "namespace", namespace, *how)
        volumes = [manifests.volume_name(claim, namespace) for claim in self._claims()]
        self.kubectl("delete", "persistentvolume", *volumes, *how)

    def _claims(self) -> list[manifests.Claim]:
        return manifests.claims(self._run / "environment", ENGINES, self.volumes)

    def load(self, archive: Path) -> None:
        """Import an image archive (docker save's form) on every node."""
        if not archive.is_file():
            raise ClusterError(f"there is no image archive {archive}: write one with `docker save -o {archive} IMAGE`")
        self._import(self._state(), archive)

    def shape(self, node: str, rate: str, latency: str) -> None:
        """Limit what a node (its name or number) sends to `rate`, queueing for at most `latency`."""
        network.shape(self._node(node), rate, latency)

    def unshape(self, node: str) -> None:
        """Lift a node's limit."""
        network.unshape(self._node(node))

    def cut(self, node: str) -> None:
        """Take a node off the network; everything on it runs on."""
        network.cut(self._node(node))

    def mend(self, node: str) -> None:
        """Put a node that was cut off back on the network."""
        network.mend(self._node(node))

    def status(self) -> str:
        """What there is of the cluster, for people."""
        current = state.load(self.name)
        if current is None:
            return f"cluster {self.name}: none; start it with `arctic cluster up --name {self.name}`"
        dead = [name for name, identity in current.processes.items() if not process.alive(identity)]
        lines = [
            f"cluster {self.name}: {'running' if current.running() else 'broken; `up` starts it anew'}",
            *(f"  {name} does not run; its log is {self.logs / name}.log" for name in dead),
            f"  kubeconfig  {self.kubeconfig}",
            f"  programs    {current.binaries} (kubectl, helm)",
            f"  image       {image.STABLE} ({current.image})",
            f"  volumes     {current.volumes}",
            f"  logs        {self.logs}",
            *(f"  node        {node.name} at {node.address}, pods {node.pods}" for node in current.addresses.nodes),
            f"  services    {current.addresses.services} inside the cluster; NodePorts at the nodes' addresses",
        ]
        return "\n".join(lines)

    # -- starting

    def _start(self, planned: State, environment: Path, progress: Progress) -> None:
        at = self._layout(planned)
        with progress.step("network and certificates"):
            host.remember()
            network.create(planned.addresses)
            cgroups.create(planned.addresses.cgroup, config.cgroup_children(planned.addresses))
            _write_credentials(at)
            self._link_environment(environment)
            _create_volumes(planned.volumes)
        with progress.step("control plane"):
            for component in config.control_plane(at):
                self._spawn(planned, component)
                if component == "kube-apiserver":
                    answers = partial(shell.attempt, *self.command("kubectl", "get", "--raw=/readyz"))
                    self._wait(planned, component, 120, answers)
        with progress.step(f"{planned.nodes} nodes"):
            self._start_nodes(planned, at)
        with progress.step("cluster DNS, namespaces and claims"):
            self._populate(planned)
        planned.ready = True
        planned.save()

    def _plan(self, nodes: int, volumes: Path) -> State:
        others = [found for name in state.names() if (found := state.load(name))]
        index = addresses.free_index((other.index for other in others), addresses.route_targets(network.routes()))
        etcd = _free_port(_FIRST_ETCD_PORT + 10 * index)
        planned = State(
            name=self.name,
            index=index,
            nodes=nodes,
            volumes=volumes,
            binaries=binaries.folder(),
            image=image.reference(),
            ports=state.Ports(api=_free_port(_FIRST_API_PORT), etcd=etcd, etcd_peer=_free_port(etcd + 1)),
            boot=state.boot_id(),
        )
        self._run.mkdir(parents=True)
        planned.save()
        # From here on `down` knows what to remove.
        self.logs.mkdir()
        return planned

    def _start_nodes(self, current: State, at: Layout) -> None:
        restrict_oom = requirements.restricts_oom_score()
        for node in current.addresses.nodes:
            for file, content in config.node_files(at, node, image.STABLE, restrict_oom=restrict_oom).items():
                path = at.node(node) / file
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, content)
            self._spawn(current, f"node{node.number}-containerd")
        for node in current.addresses.nodes:
            answers = partial(shell.attempt, "ctr", "--address", at.socket(node), "version")
            self._wait(current, f"node{node.number}-containerd", 60, answers)
        self._import(current, image.archive())
        for node in current.addresses.nodes:
            self._spawn(current, f"node{node.number}-kube-proxy")
            self._spawn(current, f"node{node.number}-kubelet")
        for node in current.addresses.nodes:
            self._wait(current, f"node{node.number}-kubelet", 120, partial(self._ready, node))

    def _populate(self, current: State) -> None:
        replicas = min(2, current.nodes)
        self.apply(manifests.dns(str(current.addresses.dns_service), image.STABLE, current.binaries, replicas))
        namespaces = ("default", manifests.SYSTEM_NAMESPACE)
        self.apply(map(manifests.restricted_namespace, namespaces))
        for namespace in namespaces:
            self.create_claims(namespace)
        self.kubectl("rollout", "status", "--namespace=kube-system", "deployment/coredns", "--timeout=180s")

    def _ready(self, node: addresses.Node) -> bool:
        condition = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        with contextlib.suppress(ClusterError):
            return self.kubectl("get", "node", node.name, "-o", condition) == "True"
        return False

    def _import(self, current: State, archive: Path) -> None:
        at = self._layout(current)

        def load(node: addresses.Node) -> None:
            shell.run("ctr", "--address", at.socket(node), "--namespace=k8s.io", "images", "import", archive)

        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(load, current.addresses.nodes))

    def _spawn(self, current: State, component: str) -> None:
        at = self._layout(current)
        commands = dict(config.control_plane(at))
        for node in current.addresses.nodes:
            commands |= config.node_components(at, node)
        folders = cgroups.daemon_folders(current.addresses.cgroup)
        log = self.logs / f"{component}.log"
        current.processes[component] = process.spawn(commands[component], log, folders, _DAEMON_ENVIRONMENT)
        current.save()

    def _wait(self, current: State, component: str, seconds: float, condition: Callable[[], bool]) -> None:
        log = self.logs / f"{component}.log"
        deadline = time.monotonic() + seconds
        while not condition():
            if not process.alive(current.processes[component]):
                last = log.read_text(errors="replace").strip().splitlines()[-3:]
                raise ClusterError(f"{component} ended; its log is {log} and ends with: " + "\n".join(last))
            if time.monotonic() > deadline:
                raise ClusterError(f"{component} was not ready after {seconds:.0f} s; its log is {log}")
            time.sleep(0.3)

    def _link_environment(self, target: Path) -> None:
        """Point the claims' folders at the environments of the sources as they are: new pods get those."""
        self._link("environment", target)
        for engine, folder in made_for_engines().items():
            self._link(f"environment-{engine}", folder)

    def _link(self, name: str, target: Path) -> None:
        fresh = self._run / f".{name}.partial"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.rename(self._run / name)

    # -- ending

    def _remove(self) -> bool:
        found = state.load(self.name)
        if found is None:
            # What was broken off before anything started, or after everything was gone.
            host.unmount_below(self._run)
            shutil.rmtree(self._run, ignore_errors=True)
            host.restore()
            return False
        if found.boot == state.boot_id():
            process.kill(found.processes.values())
        plan = found.addresses
        cgroups.kill_all(plan.cgroup)
        host.remove_traces(self._run)
        host.unmount_below(self._run)
        network.remove(plan)
        cgroups.remove(plan.cgroup)
        _remove_tree(self._run)
        host.restore()
        return True

    # -- looking up

    def _state(self) -> State:
        found = state.load(self.name)
        if found is None:
            raise ClusterError(f"there is no cluster {self.name}: start it with `arctic cluster up --name {self.name}`")
        return found

    def _layout(self, current: State) -> Layout:
        return Layout(self._run, current.binaries, current.addresses, current.ports)

    def _node(self, which: str) -> addresses.Node:
        return self._state().addresses.node(which)

    def _known(self, component: str, current: State) -> str:
        if component not in current.processes:
            raise ClusterError(f"there is no component {component!r}: name one of {', '.join(current.processes)}")
        return component


def _past_proxies(environment: Iterable[str]) -> list[str]:
    """What to put before a command so that it asks no proxy: none reaches the cluster, which is on this machine."""
    proxies = [name for name in environment if name.lower() in ("http_proxy", "https_proxy", "all_proxy")]
    return ["env", *(f"--unset={name}" for name in proxies)] if proxies else []


def _write_credentials(at: Layout) -> None:
    # Here, so that an installation that manages no cluster, such as one for `arctic validate`, needs no cryptography.
    from arctic_cluster.certificates import Authority

    authority = Authority(at.pki)
    plan = at.addresses
    service = [f"kubernetes.default.svc.{config.DOMAIN}".rsplit(".", n)[0] for n in range(5)]
    own = [str(plan.gateway), str(plan.kubernetes_service), "127.0.0.1", "localhost"]
    authority.service_account_key()
    authority.issue("apiserver", "kube-apiserver", ["system:masters"], [*service, *own])
    authority.issue("etcd", "etcd", hosts=["127.0.0.1", "localhost"])
    for node in plan.nodes:
        authority.issue(node.name, f"system:node:{node.name}", ["system:nodes"], [node.name, str(node.address)])
    for component in ("controller-manager", "scheduler"):
        authority.issue(component, f"system:kube-{component}")
    authority.issue("kube-proxy", "system:kube-proxy")
    authority.issue("admin", "arctic-admin", ["system:masters"])
    for user in ("controller-manager", "scheduler", "kube-proxy", *(node.name for node in plan.nodes)):
        _write_kubeconfig(at, user, at.kubeconfig(user))
    _write_kubeconfig(at, "admin", at.run / "kubeconfig")


def _write_kubeconfig(at: Layout, user: str, path: Path) -> None:
    pems = [(at.pki / file).read_bytes() for file in ("ca.crt", f"{user}.crt", f"{user}.key")]
    write_atomically(path, config.kubeconfig(f"arctic-{at.addresses.name}", at.server, user, *pems), mode=0o600)


def _create_volumes(volumes: Path) -> None:
    store = volumes / STORE
    with readable_by_all():
        for folder in (volumes / CORPUS, volumes / MODELS, store):
            folder.mkdir(parents=True, exist_ok=True)
    os.chown(store, image.USER, image.USER)
    for folder in store.iterdir():
        # What root made for a local run is in the way of the pods' runs beside it.
        if folder.is_dir() and folder.stat().st_uid == 0:
            os.chown(folder, image.USER, image.USER)


def _free_port(first: int) -> int:
    """The first port from `first` on that nothing on this host listens on."""
    for port in range(first, first + 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            return port
    raise ClusterError(f"the ports {first} to {first + 99} are all taken: end what listens there (`ss -tlnp`)")


def _remove_tree(folder: Path) -> None:
    """Remove the run folder, its state file last: until then `down` can be tried again."""
    for child in folder.iterdir():
        if child.name == "state.json":
            continue
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
    shutil.rmtree(folder)
