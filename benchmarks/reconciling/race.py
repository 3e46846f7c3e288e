"""One run: so many objects are made, and each is waited for until it runs."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes.aio import client, config

from arctic_operator.cluster import Cluster, client_of
from benchmarks.processes import resident
from benchmarks.reconciling.api import Watching
from benchmarks.reconciling.objects import NAMESPACE, name_of
from benchmarks.reconciling.plane import Plane

Manifest = dict[str, Any]

AT_ONCE = 32
"""Requests at a time of whoever makes the objects."""
PATIENCE = 900.0
PODS = 2
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Run:
    """What one run came to."""

    count: int
    seconds: float
    """From the first request until the last object ran."""
    latencies: list[float]
    """Seconds from an object's creation until it ran."""
    cpu: float
    """Processor seconds of the controller."""
    memory: int
    """Its resident memory at the end, bytes."""
    busy: float
    """Share of the machine's processors that was in use."""

    @property
    def rate(self) -> float:
        """Objects a second."""
        return self.count / self.seconds

    def quantile(self, share: float) -> float:
        """Return that quantile of the seconds until an object ran."""
        return quantile(self.latencies, share)


def quantile(values: list[float], share: float) -> float:
    """Return a quantile, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass
class Kind:
    """The objects of one contestant."""

    path: str
    """Of the collection."""
    make: Callable[[int], Manifest]
    pod_label: str
    """Label of a pod that has its object's name."""
    runs: Callable[[Manifest], bool]
    """Whether an object says of itself that it runs."""
    work: Callable[["Maker", Manifest], Awaitable[None]] | None = None
    """What is done with each object that was made, where no controller does."""


@asynccontextmanager
async def connected(plane: Plane) -> AsyncIterator[Cluster]:
    """Give a client of the API server."""
    configuration = client.Configuration()
    await config.load_kube_config(str(plane.kubeconfig), client_configuration=configuration)
    async with client_of(configuration) as api:
        yield Cluster(api)


@dataclass
class Maker:
    """Makes objects, and notes when each ran."""

    cluster: Cluster
    kind: Kind
    started: dict[str, float] = field(default_factory=dict)
    pods: dict[str, set[str]] = field(default_factory=dict)
    pods_ran: dict[str, float] = field(default_factory=dict)
    said: dict[str, float] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    count: int = 0

    async def make(self, indexes: Iterable[int], at_once: int) -> None:
        """Make the objects, so many at a time."""
        todo = iter(indexes)

        async def work() -> None:
            for index in todo:
                self.started[name_of(index)] = time.monotonic()
                manifest = await self.cluster.request("POST", self.kind.path, body=self.kind.make(index))
                if self.kind.work:
                    await self.kind.work(self, manifest)

        await asyncio.gather(*(work() for _ in range(at_once)))

    async def see_pods(self, watching: Watching) -> None:
        """Note when both pods of an object run."""
        path = f"/api/v1/namespaces/{NAMESPACE}/pods"
        async for event in watching.events(path, fields="status.phase=Running", metadata_only=True):
            metadata = event["object"]["metadata"]
            name = metadata.get("labels", {}).get(self.kind.pod_label)
            if name is None or event["type"] == "DELETED":
                continue
            pods = self.pods.setdefault(name, set())
            pods.add(metadata["uid"])
            if len(pods) >= PODS and name not in self.pods_ran:
                self.pods_ran[name] = time.monotonic()
                self._look()

    async def see_objects(self, watching: Watching) -> None:
        """Note when an object says that it runs."""
        async for event in watching.events(self.kind.path):
            name = event["object"]["metadata"]["name"]
            if name not in self.said and self.kind.runs(event["object"]):
                self.say(name)

    def say(self, name: str) -> None:
        """Note that an object says that it runs."""
        self.said[name] = time.monotonic()
        self._look()

    def _look(self) -> None:
        if len(self.pods_ran) >= self.count and len(self.said) >= self.count:
            self.done.set()

    def latencies(self) -> list[float]:
        """Return the seconds from each object's creation until it ran."""
        return [max(self.pods_ran[name], self.said[name]) - start for name, start in self.started.items()]


async def race(plane: Plane, kind: Kind, count: int, pids: list[int], at_once: int = AT_ONCE) -> Run:
    """Make `count` objects and wait until they run; `pids` are the controller's processes."""
    async with connected(plane) as cluster, Watching(str(plane.kubeconfig)) as watching:
        maker = Maker(cluster, kind, count=count)
        seers = [asyncio.create_task(maker.see_pods(watching)), asyncio.create_task(maker.see_objects(watching))]
        await asyncio.sleep(0.5)
        cpu, idle, start = sum(map(cpu_seconds, pids)), idle_seconds(), time.monotonic()
        parts: list[asyncio.Task[Any]] = [
            asyncio.create_task(maker.make(range(count), at_once)),
            asyncio.create_task(maker.done.wait()),
            *seers,
        ]
        try:
            async with asyncio.timeout(PATIENCE):
                while not maker.done.is_set():
                    finished, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
                    for part in finished:
                        part.result()
                    parts = [part for part in parts if part not in finished]
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
        ended = max(*maker.pods_ran.values(), *maker.said.values())
        seconds = ended - start
        return Run(
            count,
            seconds,
            maker.latencies(),
            sum(map(cpu_seconds, pids)) - cpu,
            sum(map(resident, pids)),
            1 - (idle_seconds() - idle) / ((time.monotonic() - start) * (os.cpu_count() or 1)),
        )


def cpu_seconds(pid: int) -> float:
    """Return the processor seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def idle_seconds() -> float:
    """Return the seconds that this machine's processors have had nothing to do."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return (int(fields[4]) + int(fields[5])) / TICKS
