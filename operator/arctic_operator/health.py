"""Whether this operator is well: `/healthz` proves that watching works, `/readyz`, and `/metrics`."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from arctic_api.world import Label
from arctic_operator.cache import Manifest
from arctic_operator.cluster import ApiError, Cluster, micro_time
from arctic_operator.install import Install
from arctic_operator.metrics import HEARTBEAT_AGE, REGISTRY
from arctic_operator.settings import Settings

log = logging.getLogger(__name__)

BEAT_SECONDS = 20.0
BLIND_AFTER = 60.0
"""Seconds that a heartbeat may be written and not seen."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Heartbeat:
    """Writes an object that is watched, and sees it come back."""

    def __init__(
        self, cluster: Cluster, settings: Settings, install: Install, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster, self._install, self._clock = cluster, install, clock
        self._namespace, self._pod = settings.heartbeat_namespace, settings.pod_name
        # One for all pods of an install: those of pods that are gone would stay.
        self.name = f"{settings.lease_name}-heartbeat"
        self._unseen_since: float | None = None
        """When the oldest was written that has not come back, moved on by the time in which none could be written."""
        self._awaited = ""
        self._ended = 0.0
        """When the last beat ended, written or not."""

    async def run(self) -> None:
        """Beat for ever."""
        while True:
            try:
                await self.beat()
            except ApiError as error:
                log.debug("heartbeat not written: %s", error)
            await asyncio.sleep(BEAT_SECONDS)

    async def beat(self) -> None:
        """Write one. The time in which none can be written does not count: an API server that is away shows nothing."""
        now = micro_time(datetime.now(UTC))
        if self._unseen_since is None:
            # Before it is written: the watch may show it before the write is answered.
            self._awaited, self._unseen_since = now, self._clock()
        try:
            await self._cluster.apply_own(
                {
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {
                        "name": self.name,
                        "namespace": self._namespace,
                        "labels": {Label.MANAGED.value: "true"},
                        **await self._install.owners(self._namespace),
                    },
                    "spec": {"holderIdentity": self._pod, "renewTime": now},
                }
            )
        except ApiError:
            if self._awaited == now:
                self._unseen_since = None
            elif self._unseen_since is not None:
                self._unseen_since += self._clock() - self._ended
            raise
        finally:
            self._ended = self._clock()

    def seen(self, manifest: Manifest) -> None:
        """Take what the watch shows of Leases; another pod's beat proves as well that it works."""
        if manifest["metadata"]["name"] == self.name and manifest["spec"].get("renewTime", "") >= self._awaited:
            self._unseen_since = None

    def unseen(self) -> float:
        """Return the seconds since the first write that has not come back."""
        return self._clock() - self._unseen_since if self._unseen_since is not None else 0.0


class Health:
    """The HTTP server of probes and metrics."""

    def __init__(self, heartbeat: Heartbeat, watchers: Callable[[], str], inventory: Collector, port: int) -> None:
        """`watchers` returns what is wrong with the watches, nothing if all stand."""
        self._heartbeat, self._watchers, self._port = heartbeat, watchers, port
        # Of its own: REGISTRY is the process's, and outlives the operators that tests make in one.
        self._inventory = CollectorRegistry()
        self._inventory.register(inventory)
        self.ready = False
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Listen, and return the port."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, None, self._port)
        await site.start()
        port: int = self._runner.addresses[0][1]
        return port

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner:
            await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        unseen = self._heartbeat.unseen()
        if unseen > BLIND_AFTER:
            text = f"a heartbeat was written {unseen:.0f} s ago and the watch has not shown it\n"
            return web.Response(status=500, text=text)
        fault = self._watchers()
        return web.Response(status=500, text=fault + "\n") if fault else web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if self.ready:
            return web.Response(text="ok\n")
        return web.Response(status=503, text="the watches are not up yet\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        HEARTBEAT_AGE.set(self._heartbeat.unseen())
        body = generate_latest(REGISTRY) + generate_latest(self._inventory)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})
