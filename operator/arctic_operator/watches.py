"""The watches of what is not a resource of ours: children, nodes and the heartbeat. kopf watches our resources.

It hands each event to a task of the object's own, which waits for the next one for a while. For objects that people
edit that is no matter; for pods by the thousand it was a third of this process's work.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import aclosing
from http import HTTPStatus
from random import uniform

from arctic_operator.cluster import CHILD_KINDS, ApiError, Cluster
from arctic_operator.handlers import EndlessBackoff, Watcher
from arctic_operator.observed import LEADER_WORKER_SET
from arctic_operator.settings import Settings

log = logging.getLogger(__name__)

FOLLOW_SECONDS = (240.0, 300.0)
"""After so long the API server ends a watch, as it is asked to: so ends too what is cut off and does not know it."""
EARLY = 1.0
"""Seconds of which a watch that ends before was refused, whatever it says."""


def watched(settings: Settings) -> Sequence[str]:
    """Return the kinds."""
    asked = (LEADER_WORKER_SET,) if settings.leader_worker_sets else ()
    return (*CHILD_KINDS, *asked, "Lease", *(("Node",) if settings.read_nodes else ()))


class Watches:
    """A watch for each kind and namespace, for ever.

    Args:
        cluster: the API server.
        kinds: what is watched.
        namespaces: where; everywhere for none. Nodes are in no namespace.
        watcher: takes the kind of event (`DELETED`, another, or "" for what a list has shown), and the object.
    """

    def __init__(self, cluster: Cluster, kinds: Sequence[str], namespaces: Sequence[str], watcher: Watcher) -> None:
        self._watches = [
            _Watch(cluster, kind, namespace, watcher)
            for kind in kinds
            for namespace in (namespaces if namespaces and kind != "Node" else ("",))
        ]

    async def run(self) -> None:
        """Watch until cancelled; a fault of this program ends it."""
        async with asyncio.TaskGroup() as tasks:
            for watch in self._watches:
                tasks.create_task(watch.run())


class _Watch:
    def __init__(self, cluster: Cluster, kind: str, namespace: str, watcher: Watcher) -> None:
        self._cluster, self._kind, self._namespace, self._watcher = cluster, kind, namespace, watcher
        self._version = 0
        """What was seen last; 0 if it has to be listed what there is."""

    async def run(self) -> None:
        waits = iter(EndlessBackoff())
        while True:
            began, known = time.monotonic(), self._version
            try:
                if not self._version:
                    await self._list()
                await self._follow()
            except ApiError as error:
                log.warning("the watch of %s has ended, and is begun anew: %s", self._kind, error)
                # Who was not reached is asked for what came since; who refuses may have forgotten that, or lost it.
                self._version = 0 if error.code else self._version
                if known and error.code == HTTPStatus.GONE:
                    continue  # an API server that has come back: it is there, and what is new is not known yet
            if time.monotonic() - began > EARLY:
                waits = iter(EndlessBackoff())
            else:
                await asyncio.sleep(next(waits))

    async def _list(self) -> None:
        """Show what there is; what has gone unseen is found by `Observer.find_missed`."""
        version = 0
        async for page in self._cluster.list_watched(self._kind, self._namespace):
            for manifest in page.items:
                self._watcher("", manifest)
            version = page.version
        self._version = version

    async def _follow(self) -> None:
        seconds = round(uniform(*FOLLOW_SECONDS))
        following = self._cluster.follow(self._kind, self._namespace, self._version, seconds)
        async with aclosing(following) as told:
            async for self._version, event, manifest in told:
                if manifest is not None:
                    self._watcher(event, manifest)
