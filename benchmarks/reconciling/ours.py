"""Our operator as a process against the control plane, and the limit: the same writes, made without thinking."""

import asyncio
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arctic_api import API_VERSION, training
from arctic_api.crd import KINDS, crd
from arctic_api.world import Label
from arctic_cluster.manifests import Claim, claim_with_volume
from arctic_cluster.paths import CHECKOUT
from arctic_operator.observed import identity_of
from benchmarks.reconciling.api import Watching
from benchmarks.reconciling.objects import CLAIM, NAMESPACE, SETTINGS, SYSTEM, Children, arctic_training, name_of
from benchmarks.reconciling.plane import Plane
from benchmarks.reconciling.race import AT_ONCE, Kind, Maker, connected

Manifest = dict[str, Any]

METRICS = "http://127.0.0.1:9443/metrics"
READY_SECONDS = 60.0
PATH = f"/apis/{API_VERSION}/namespaces/{NAMESPACE}/{training.PLURAL}"


def is_running(manifest: Manifest) -> bool:
    """Whether a training says that it runs."""
    return bool(manifest.get("status", {}).get("state") == "Running")


OURS = Kind(PATH, arctic_training, Label.NAME, is_running)


def install(plane: Plane) -> None:
    """Make what trainings need: their definition, the namespaces, the claim of their store."""
    plane.define([crd(kind) for kind in KINDS.values()])
    namespaces = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in (NAMESPACE, SYSTEM)]
    plane.apply(namespaces)
    plane.apply(claim_with_volume(Claim(CLAIM, Path("/var/lib"), "ReadWriteMany"), NAMESPACE))


@contextmanager
def operator(plane: Plane) -> Iterator[list[int]]:
    """Run the operator, and the fleet that stands for the workers; the operator's process is given."""
    environment = SETTINGS | {"KUBECONFIG": str(plane.kubeconfig), "ARCTIC_METRICS_PORT": "9443"}
    command = [sys.executable, "-m", "arctic_operator"]
    fleet = [sys.executable, "-m", "benchmarks.reconciling.fleet", str(plane.kubeconfig), NAMESPACE]
    with (
        plane.running("fleet", fleet, {"PYTHONPATH": str(CHECKOUT)}),
        plane.running("operator", command, environment) as pid,
    ):
        _until_leading()
        yield [pid]


def _until_leading() -> None:
    deadline = time.monotonic() + READY_SECONDS
    while metric("arctic_operator_leader") != 1:
        if time.monotonic() > deadline:
            raise RuntimeError("the operator did not begin to lead: see its log")
        time.sleep(0.2)


def metric(name: str) -> float:
    """Return the sum of one of the operator's metrics over its labels; -1 while there is none."""
    try:
        with urllib.request.urlopen(METRICS, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return -1.0
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)


class Limit:
    """A client that makes the same children and writes as many statuses, and does nothing else."""

    def __init__(self, status: Manifest, writes: int) -> None:
        """`status` is what is written last, and `writes` how often an object's status is."""
        self._status, self._writes, self._children = status, writes, Children()

    @property
    def kind(self) -> Kind:
        """The objects, with what is done with each."""
        return Kind(PATH, arctic_training, Label.NAME, lambda _: False, self._work)

    async def _work(self, maker: Maker, manifest: Manifest) -> None:
        for child in self._children.of(manifest):
            await maker.cluster.create(child)
        for number in range(self._writes):
            step = {} if number == self._writes - 1 else {"state": f"Step{number}"}
            await maker.cluster.apply_status(identity_of(manifest), self._status | step)
        maker.say(manifest["metadata"]["name"])


async def change_seconds(plane: Plane, count: int, changes: int) -> list[float]:
    """Edit objects one after the other; return the seconds until each edit was seen in the status."""
    seconds = []
    async with connected(plane) as cluster, Watching(str(plane.kubeconfig)) as watching:
        for number in range(changes):
            name = name_of(number * max(1, count // changes) % count)
            body = {"spec": {"restart": {"limit": 3 + number % 5}}}
            start = time.monotonic()
            edited = await cluster.request("PATCH", f"{PATH}/{name}", body=body, content="application/merge-patch+json")
            generation = edited["metadata"]["generation"]
            async with asyncio.timeout(60):
                async for event in watching.events(PATH, fields=f"metadata.name={name}"):
                    if event["object"].get("status", {}).get("observedGeneration") == generation:
                        break
            seconds.append(time.monotonic() - start)
    return seconds


async def first_status(plane: Plane) -> Manifest:
    """Return the status of one of the trainings."""
    async with connected(plane) as cluster:
        listed = await cluster.request("GET", PATH)
    status: Manifest = listed["items"][0]["status"]
    return status


async def make_foreign(plane: Plane, count: int) -> None:
    """Make pods that are nothing to the operator, and that nobody schedules."""
    spec = {"schedulerName": "nobody", "containers": [{"name": "main", "image": "arctic/worker:0.1.0"}]}
    async with connected(plane) as cluster:
        todo = iter(range(count))

        async def work() -> None:
            for index in todo:
                metadata = {"name": f"foreign-{index}", "namespace": NAMESPACE}
                await cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
