"""Runs the operator: `python3 -m arctic_operator`. All parts are made and joined here."""

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
from functools import partial
from typing import Any

import kopf
import uvloop
from kubernetes.aio import client

from arctic_api import tracing, training
from arctic_api.log_format import configure
from arctic_operator.aside import Aside, run_in
from arctic_operator.cache import CUSTOM_KINDS, Cache, Key, key_of, owner_of
from arctic_operator.cluster import NO_LEADER_WORKER_SETS, ApiError, Cluster, connect
from arctic_operator.handlers import build_registry, kopf_settings
from arctic_operator.health import Health, Heartbeat
from arctic_operator.install import Install
from arctic_operator.inventory import Inventory
from arctic_operator.lease import Lease
from arctic_operator.metrics import OBJECTS, QUEUE_DEPTH, WATCH_EVENTS
from arctic_operator.observed import LEADER_WORKER_SET, is_news, is_pending
from arctic_operator.reconcile import Reconciler
from arctic_operator.settings import Settings, SettingsError
from arctic_operator.watches import Watches, watched
from arctic_operator.workqueue import WorkQueue

log = logging.getLogger("arctic_operator")

WATCHER_TASK = "watcher for "
"""How kopf names the tasks that watch."""
MADE_HERE = frozenset({"Job", "Service", "NetworkPolicy"})
"""Children that nobody makes but the operator: that one has appeared is what it has just done."""
PENDING_SECONDS = 3.0
"""Time after which news of pods that don't run yet are looked at, unless something more comes first."""
TOGETHER_SECONDS = 0.1
"""Time after which pods that have begun to run are looked at: those of a world do so one after the other."""
LOOK_SECONDS = 2.0
LOOK_FOR_KIND_SECONDS = 15.0
SWEEP_SECONDS = 300.0
"""Time between two searches of all objects for garbage: one holds up all threads, and hardly ever finds any."""
NEVER = 2**31 - 1
"""As many searches of a middle generation as there never are."""
STOP_SECONDS = 5.0
"""Time that the watches get to end; what they hold is not worth waiting for."""
RECURSION_LIMIT = 21_000
"""The API server takes JSON of 10,000 levels, and what is kept of it is copied with two calls a level."""
STACK_BYTES = 96 * 2**20
"""So many calls take at most 52 MB of the C stack, where each goes through `sorted`: a fault of ours stays an error."""


class Operator:
    """The parts of one operator process."""

    def __init__(self, cluster: Cluster, apart: client.ApiClient, settings: Settings) -> None:
        """`apart` is for the Lease, which is renewed in a thread of its own."""
        self._cluster, self._settings = cluster, settings
        self._cache, self._queue = Cache(), WorkQueue[Key]()
        self._reconciler = Reconciler(cluster, self._cache, self._queue, settings)
        install = Install(cluster, settings)
        self._heartbeat = Heartbeat(cluster, settings, install)
        self._apart, leases = apart, Cluster(apart)
        self._lease = Lease(leases, settings, Install(leases, settings))
        self._most_watchers = 0
        inventory = Inventory(self._cache, lambda: self._lease.leading, self._reconciler.waiting)
        self._health = Health(self._heartbeat, self._missing_watchers, inventory, settings.metrics_port)
        QUEUE_DEPTH.set_function(self._queue.__len__)
        for kind in CUSTOM_KINDS:
            OBJECTS.labels(kind).set_function(partial(self._cache.count, kind))

    async def run(self) -> None:
        """Run until told to stop by a signal; what fails for good ends the process."""
        port = await self._health.start()
        log.info("probes and metrics on port %d", port)
        await self._until_served(*CUSTOM_KINDS, every=LOOK_SECONDS)
        settings = self._settings
        missing = settings.leader_worker_sets and not await self._serves(LEADER_WORKER_SET)
        if missing:
            settings = settings.model_copy(update={"leader_worker_sets": False})
        stop, ready = asyncio.Event(), asyncio.Event()
        watching = kopf.operator(
            registry=build_registry(self._on_event),
            settings=kopf_settings(),
            standalone=True,
            clusterwide=not self._settings.watch_namespaces,
            namespaces=self._settings.watch_namespaces,
            stop_flag=stop,
            ready_flag=ready,
        )
        watches = Watches(self._cluster, watched(settings), settings.watch_namespaces, self._on_event)
        parts = [
            asyncio.create_task(watching, name="watching"),
            asyncio.create_task(watches.run(), name="watching children"),
            asyncio.create_task(self._lead(ready, stop), name="leading"),
            asyncio.create_task(self._heartbeat.run(), name="heartbeat"),
            asyncio.create_task(_sweep(), name="sweeping"),
            asyncio.create_task(stop.wait(), name="stopping"),
            *([asyncio.create_task(self._await_leader_worker_sets(), name="missing a kind")] if missing else []),
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            stop.set()
            for part in parts[1:]:
                part.cancel()
            await asyncio.gather(*parts[1:], return_exceptions=True)
            await asyncio.wait(parts[:1], timeout=STOP_SECONDS)
            await self._health.stop()

    async def _lead(self, ready: asyncio.Event, stop: asyncio.Event) -> None:
        await ready.wait()
        # kopf's own handlers, which these replace, take a second signal for an error and tell nobody but kopf.
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        self._health.ready = True
        here = asyncio.get_running_loop()
        async with Aside("lease") as aside:
            await aside.run(partial(self._be_elected, here))

    async def _be_elected(self, here: asyncio.AbstractEventLoop) -> None:
        """Reconcile in the loop `here` whenever this operator leads; in the Lease's own thread."""
        async with self._apart:
            try:
                await self._lease.lead(lambda: run_in(here, lambda: self._reconciler.run(again=self._lease.again)))
            finally:
                await self._lease.release()

    async def _serves(self, *kinds: str) -> bool:
        """Return whether the API server serves kinds, once it answers. kopf looks for them once, at its start."""
        while True:
            try:
                return await self._cluster.serves(*kinds)
            except ApiError as error:
                log.warning("waiting for the API server: %s", error)
            await asyncio.sleep(LOOK_SECONDS)

    async def _until_served(self, *kinds: str, every: float) -> None:
        """Wait for the definitions of kinds."""
        while True:
            if await self._serves(*kinds):
                return
            log.info("waiting for the CustomResourceDefinitions of %s", " and ".join(kinds))
            await asyncio.sleep(every)

    async def _await_leader_worker_sets(self) -> None:
        """Return, which ends the process, when there is one kind more to watch: it is started again, and does.

        Until then all else goes on, and the status of a service that needs a group says what is missing.
        """
        if self._settings.inference_groups == LEADER_WORKER_SET:
            log.warning("%s; everything else goes on", NO_LEADER_WORKER_SETS)
        await self._until_served(LEADER_WORKER_SET, every=LOOK_FOR_KIND_SECONDS)
        log.info("the cluster serves LeaderWorkerSets now: ending, to watch them when started again")

    def _on_event(self, kind: str, manifest: dict[str, Any]) -> None:
        """Take what a watch shows: keep it, and look at the object that it belongs to if this operator leads."""
        what = manifest["kind"]
        WATCH_EVENTS.labels(what).inc()
        if what == "Lease":
            self._heartbeat.seen(manifest)
            return
        before = self._cache.same(manifest)
        if kind == "DELETED":
            self._cache.remove(manifest)
        elif not self._cache.put(manifest) or not _tells(kind, before, manifest):
            return
        if not self._lease.leading:
            return  # whoever leads begins with all objects
        if what == "Node":
            self._on_node(manifest["metadata"]["name"])
            return
        key, before_key = key_of(manifest), before and key_of(before)
        if before_key and before_key != key:
            self._queue.add(before_key)
        if key is None:
            return
        if wait := _wait(kind, before, manifest):
            self._queue.add_after(key, wait)
            return
        self._queue.add(key)
        if what in CUSTOM_KINDS:
            self._on_custom(key, manifest)

    def _on_custom(self, key: Key, manifest: dict[str, Any]) -> None:
        """Look at what depends on an object of ours: the one that has made it, and who waits for its weights."""
        if owner := owner_of(manifest):
            self._queue.add(owner)
        if manifest["kind"] == training.KIND:
            for other in self._cache.users(key):
                self._queue.add(other)

    def _on_node(self, name: str) -> None:
        for pod in self._cache.all("Pod"):
            key = key_of(pod) if pod.get("spec", {}).get("nodeName") == name else None
            if key:
                self._queue.add(key)

    def _missing_watchers(self) -> str:
        """Tell whether a watch has ended: kopf logs that, and goes on without it."""
        names = [task.get_name() for task in asyncio.all_tasks()]
        running = sum(name.startswith(WATCHER_TASK) for name in names)
        self._most_watchers = max(self._most_watchers, running)
        missing = self._most_watchers - running
        return f"{missing} of {self._most_watchers} watches have ended" if missing else ""


def _tells(kind: str, before: dict[str, Any] | None, manifest: dict[str, Any]) -> bool:
    """Whether an event tells more than what this operator has just done, or what nobody reads."""
    if before is None:
        return kind != "ADDED" or manifest["kind"] not in MADE_HERE
    return is_news(before, manifest)


def _wait(kind: str, before: dict[str, Any] | None, manifest: dict[str, Any]) -> float:
    """Return the seconds for which an event may wait for the one that follows by itself, and tells more."""
    if manifest["kind"] != "Pod" or kind == "DELETED":
        return 0.0
    if is_pending(manifest):
        return PENDING_SECONDS
    starts = before is not None and is_pending(before) and manifest["status"]["phase"] == "Running"
    return TOGETHER_SECONDS if starts else 0.0


async def _sweep() -> None:
    """Search all objects for garbage by the clock, as `sweep_seldom` leaves it to us."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        gc.collect()


def sweep_seldom() -> None:
    """Leave to Python the search among new objects for garbage, which is where nearly all of it is.

    By itself it would search all of them again whenever they have become a quarter more, of 3,000 worlds' a second
    long, and no thread runs meanwhile: not the Lease's either. What is imported stays, and is never searched.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, NEVER)
    gc.freeze()


def allow_deep_objects() -> None:
    """Let an object be read however deeply it is nested: kopf ends a watch, for everybody, on one that can't be.

    The main thread's stack grows up to what is allowed at that moment.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    stack = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, hard))
    sys.setrecursionlimit(RECURSION_LIMIT)


async def _main(settings: Settings) -> None:
    async with await connect() as api:
        await Operator(Cluster(api), await connect(), settings).run()


def main() -> int:
    """Return the exit code: 2 for a wrong setting."""
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        sys.stderr.write(f"arctic-operator: {error}\n")
        return 2
    configure(settings.log_level.upper(), settings.log_format)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    allow_deep_objects()
    sweep_seldom()
    tracing.begin("arctic-operator", settings.tracing_endpoint, {"service.instance.id": settings.pod_name})
    try:
        uvloop.run(_main(settings))
    finally:
        tracing.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
