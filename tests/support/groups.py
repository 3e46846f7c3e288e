"""Real groups of inference processes on loopback, and what is alike for those that run elsewhere."""

import asyncio
import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

from arctic_api.world import NODE_RANK_VARIABLE, WORLD_VARIABLE, InferenceGroup


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something in another process."""
    while not await condition():  # noqa: ASYNC110 - what is waited for is in another process
        await asyncio.sleep(0.05)


class Served(ABC):
    """A group behind an address, and the metrics of its leader."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Where the API is."""

    @abstractmethod
    def metrics(self) -> str:
        """Return the leader's metrics."""

    async def metric(self, name: str, missing: float | None = None) -> float:
        """Return a metric of the leader's, or `missing` where it is not there; `name` may have labels."""
        text = await asyncio.to_thread(self.metrics)
        lines = (line for line in text.splitlines() if line.startswith(f"arctic_inference_{name} "))
        line = next(lines) if missing is None else next(lines, str(missing))
        return float(line.split()[-1])

    async def until_idle(self) -> None:
        """Wait until no request is left."""

        async def idle() -> bool:
            return await self.metric("requests_running") + await self.metric("requests_waiting") == 0

        await until(idle)


class Group(Served):
    """The processes of one group."""

    def __init__(self, worlds: list[InferenceGroup]) -> None:
        self.worlds = worlds
        self.processes = [self._start(world, rank) for rank, world in enumerate(worlds)]

    def _start(self, world: InferenceGroup, rank: int) -> subprocess.Popen[bytes]:
        told = {WORLD_VARIABLE: world.model_dump_json(by_alias=True), NODE_RANK_VARIABLE: str(rank)}
        environment = os.environ | told | {"OMP_NUM_THREADS": "1"}
        with Path(f"{world.termination_message}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "arctic_workers.inference"], env=environment, stderr=log, stdout=log
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.worlds[0].ports.http}"

    def ready(self, rank: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.worlds[rank].ports.metrics}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def wait_until_ready(self) -> None:
        while not all(self.ready(rank) for rank in range(len(self.worlds))):
            assert all(process.poll() is None for process in self.processes), self.logs()
            time.sleep(0.1)

    def metrics(self) -> str:
        return httpx.get(f"http://127.0.0.1:{self.worlds[0].ports.metrics}/metrics").text

    def logs(self) -> str:
        return "\n".join(Path(f"{world.termination_message}.log").read_text() for world in self.worlds)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
