"""Tells people what happened, as Kubernetes Events, beside the reconciling: nothing waits for it."""

import asyncio
import hashlib
import logging
from collections import deque
from datetime import datetime

from arctic_api import API_VERSION
from arctic_operator.cluster import MERGE, NAMESPACE_ENDS, ApiError, Cluster, Manifest, micro_time, path_of
from arctic_operator.observed import Identity
from arctic_operator.plan.actions import Event

log = logging.getLogger(__name__)

NOTE_BYTES = 1024
"""What the API server takes: it counts no letters."""
WAITING = 10_000
"""Events that may wait to be told; the oldest go first, as they do in the cluster."""


class Events:
    """What happens again counts up one event, which the cluster remembers, and forgets."""

    def __init__(self, cluster: Cluster, instance: str) -> None:
        self._cluster = cluster
        self._instance = instance
        self._waiting: deque[tuple[Identity, Event, datetime]] = deque(maxlen=WAITING)
        self._more = asyncio.Event()

    def tell(self, identity: Identity, event: Event, now: datetime) -> None:
        """Have one event told."""
        self._waiting.append((identity, event, now))
        self._more.set()

    async def run(self) -> None:
        """Tell what is to be told, one after the other, for ever."""
        while True:
            await self._more.wait()
            self._more.clear()
            while self._waiting:
                await self._tell(*self._waiting.popleft())

    async def _tell(self, identity: Identity, event: Event, now: datetime) -> None:
        """Tell one event; that it can't be told is no reason to fail."""
        name = f"{identity.name}.{hashlib.sha256(f'{identity.uid}{event}'.encode()).hexdigest()[:16]}"
        try:
            if await self._create(identity, name, event, now) is None:
                await self._count(identity.namespace, name, now)
        except ApiError as error:
            level = logging.DEBUG if error.reason == NAMESPACE_ENDS else logging.WARNING
            log.log(level, "event %s of %s not told: %s", event.reason, identity.name, error)

    async def _count(self, namespace: str, name: str, now: datetime) -> None:
        query = {"fieldSelector": f"metadata.name={name}"}
        found = await self._cluster.request("GET", f"/api/v1/namespaces/{namespace}/events", query=query)
        for known in found["items"]:
            count = 1 + ((known.get("series") or {}).get("count") or 1)
            series = {"count": count, "lastObservedTime": micro_time(now)}
            path = path_of("Event", namespace, name)
            await self._cluster.request("PATCH", path, body={"series": series}, content=MERGE)

    async def _create(self, identity: Identity, name: str, event: Event, now: datetime) -> Manifest | None:
        """Return the event, None if it is there already."""
        manifest = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": identity.namespace},
            "eventTime": micro_time(now),
            "reportingController": "arctic.dev/operator",
            "reportingInstance": self._instance,
            "action": "Reconcile",
            "type": event.type,
            "reason": event.reason[:128],
            "note": event.message.encode()[:NOTE_BYTES].decode(errors="ignore"),
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": identity.kind,
                "namespace": identity.namespace,
                "name": identity.name,
                "uid": identity.uid,
            },
        }
        return await self._cluster.create(manifest)
