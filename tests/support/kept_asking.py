"""A real service that a client asks all the while, and what may be done to it and to what is under it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from objects import Objects, eventually, is_ready, kill
from real_worlds import real_service
from steady_load import SteadyLoad

from arctic_api import inference
from arctic_api.world import Label
from arctic_cluster import Cluster
from arctic_cluster.config import inside
from arctic_cluster.errors import ClusterError
from arctic_cluster.manifests import SYSTEM_NAMESPACE
from arctic_operator.manifests.gateway import REPLICAS, ROLE

LEASE = ("arctic-operator", "-n", SYSTEM_NAMESPACE)
PATIENCE = 300.0
"""Seconds for a change, or for a recovery."""


class RealService:
    """A service of a small random Arctic that is ready.

    Args:
        objects: the namespace.
        replicas: number of groups.
        spec: what else is another than in the example.
    """

    KIND = inference.KIND
    NAME = "answers"

    def __init__(self, objects: Objects, replicas: int, **spec: Any) -> None:
        self.objects, self.cluster = objects, objects.cluster
        real_service(objects, self.NAME, replicas=replicas, **spec)
        self.until_at_rest(replicas)

    @contextmanager
    def asked(self, pace: float, timeout: float) -> Iterator[SteadyLoad]:
        """Ask its own address, in the network of the first node; open requests are waited for at the end."""
        [port] = (address := self.objects.get("service", self.NAME)["spec"])["ports"]
        url = f"http://{address['clusterIP']}:{port['port']}"
        with tempfile.TemporaryDirectory() as folder:
            within = inside(self.cluster.nodes[0])
            load = SteadyLoad(url, self.NAME, Path(folder) / "asked", pace, timeout, within)
            try:
                yield load
            finally:
                load.end()

    @property
    def status(self) -> dict[str, Any]:
        """Its status."""
        return self.objects.status(self.KIND, self.NAME)

    @property
    def pods(self) -> list[dict[str, Any]]:
        """The pods of its groups."""
        return self.objects.pods(self.NAME, self.KIND)

    @property
    def groups(self) -> set[str]:
        """The names of its groups that have pods."""
        return {pod["metadata"]["labels"][Label.GROUP] for pod in self.pods}

    @property
    def gateways(self) -> list[dict[str, Any]]:
        """The pods of its gateway."""
        return self._of_gateway("pods")

    def _of_gateway(self, kinds: str) -> list[dict[str, Any]]:
        selector = f"{Label.NAME}={self.NAME},{Label.KIND}={self.KIND},{Label.ROLE}={ROLE}"
        return self.objects.labelled(kinds, selector)

    def change(self, **spec: Any) -> None:
        """Change its specification."""
        self.objects.change(self.KIND, self.NAME, **spec)

    def until_at_rest(self, replicas: int) -> None:
        """Wait until it has so many ready groups as the manifest says, and nothing else."""

        def rests() -> bool:
            found = self.objects.get(self.KIND, self.NAME)
            status, of_each = found.get("status", {}), found["spec"]["parallelism"]["pipeline"]
            counts = {status.get(name) for name in ("replicas", "readyReplicas", "updatedReplicas")}
            if status.get("state") != "Ready" or counts != {replicas} or not _seen(found):
                return False
            pods, [gateway] = self.pods, self._of_gateway("deployments")
            gateways = gateway["status"]
            counts = {gateways.get(name) for name in ("replicas", "readyReplicas", "updatedReplicas")}
            whole = len(pods) == of_each * replicas and all(map(is_ready, pods))
            return whole and counts == {REPLICAS} and len(self.gateways) == REPLICAS and _seen(gateway)

        eventually(f"{replicas} groups of {self.NAME} and nothing else", rests, PATIENCE)

    def until_state(self, *states: str) -> None:
        """Wait for a state."""
        self.objects.state(self.KIND, self.NAME, *states, limit=PATIENCE)


def _seen(found: dict[str, Any]) -> bool:
    """Whether an object's status is of its newest specification."""
    return bool(found["status"].get("observedGeneration") == found["metadata"]["generation"])


def leader(cluster: Cluster) -> str:
    """Return the name of the operator's pod that leads, by the Lease."""
    return cluster.kubectl("get", "lease", *LEASE, "-o", "jsonpath={.spec.holderIdentity}")


def kill_the_operator(cluster: Cluster) -> str:
    """Kill the one that leads, so that it gives up nothing, and its pod with it; return its name."""
    name, system = leader(cluster), Objects(cluster, SYSTEM_NAMESPACE)
    kill(system.get("pod", name), lambda arguments: "arctic_operator" in arguments)
    system.kubectl("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")
    return name


def until_another_leads(cluster: Cluster, killed: str) -> None:
    """Wait until another operator than one that was killed holds the Lease."""

    def leads() -> bool:
        with suppress(ClusterError):
            return leader(cluster) not in ("", killed)
        return False

    eventually("another operator leads", leads, PATIENCE)


def node_of(pod: dict[str, Any]) -> str:
    """Return the name of a pod's node."""
    name: str = pod["spec"]["nodeName"]
    return name
