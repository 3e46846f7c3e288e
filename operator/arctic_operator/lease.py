"""Leader election by a `coordination.k8s.io` Lease: who reconciles, of all operators that watch."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from arctic_api.common import parse_duration
from arctic_operator.cache import Manifest
from arctic_operator.cluster import ApiError, Cluster, micro_time
from arctic_operator.install import Install
from arctic_operator.metrics import LEADER
from arctic_operator.settings import Settings

log = logging.getLogger(__name__)

STOP_SECONDS = 15.0
"""Time that work gets to end once the Lease is lost; the process ends with work that does not."""


class Lease:
    """One candidate. Another's Lease is judged by how long this process has seen it unchanged: clocks may differ."""

    def __init__(self, cluster: Cluster, settings: Settings, install: Install) -> None:
        self._cluster, self._install = cluster, install
        self._namespace, self._name = settings.namespace, settings.lease_name
        self._identity = settings.pod_name
        self._duration = parse_duration(settings.lease_duration)
        self._renew = parse_duration(settings.lease_renew)
        self._seen: tuple[Any, float] | None = None
        self._held: Manifest | None = None
        self._renewed = 0.0
        self.leading = False
        """Whether the work is running that needs the Lease."""
        self._reign: tuple[Any, ...] | None = None
        self.again = False
        """Whether nobody else has led since this process did: a busy machine may lose the Lease to nobody."""

    async def lead(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` whenever, and only while, the Lease is held; for ever. What `work` raises ends it."""
        while True:
            await self._acquire()
            reign = self._current_reign()
            self.again, self._reign = reign == self._reign, reign
            log.info("leading%s", ", as before" if self.again else "")
            self._tell(leading=True)
            await self._term(asyncio.ensure_future(work()))
            self._tell(leading=False)
            log.warning("not leading any more")

    def _tell(self, *, leading: bool) -> None:
        self.leading = leading
        LEADER.set(leading)

    async def _acquire(self) -> None:
        held = await self._try()
        while not held:
            await asyncio.sleep(self._renew)
            held = await self._try()

    def _current_reign(self) -> tuple[Any, ...]:
        """Return what another leader, or another Lease of the name, would change."""
        assert self._held is not None
        return self._held["metadata"].get("uid"), self._held["spec"].get("leaseTransitions")

    async def _term(self, work: asyncio.Future[None]) -> None:
        """End the work before another operator may believe that the Lease has run out."""
        try:
            while not work.done():
                await asyncio.wait([work], timeout=self._renew)
                left = self._duration * 3 / 4 - (_now() - self._renewed)
                renewed = await _within(left, self._try()) if left > 0 else False
                if not renewed and (self._held is None or _now() - self._renewed >= self._duration * 3 / 4):
                    break
        finally:
            work.cancel()
            done, _ = await asyncio.wait([work], timeout=STOP_SECONDS)
            if not done:
                raise RuntimeError("work that needs the Lease did not end with it")
            if not work.cancelled():
                work.result()

    async def release(self) -> None:
        """Let another operator lead at once."""
        if self._held is None:
            return
        self._held = None
        given = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": micro_time(datetime.now(UTC))}
        with suppress(ApiError):
            # As it is now: the last renewal may have been written, and its answer lost.
            known = await self._known()
            if known and known.get("spec", {}).get("holderIdentity") == self._identity:
                await self._cluster.replace(known | {"spec": known["spec"] | given})

    async def _try(self) -> bool:
        """Take or renew the Lease; False if another holds it or writes to it, or no API server answers."""
        started = _now()
        try:
            held = await self._renew_held() or await self._write(await self._known())
        except ApiError as error:
            log.debug("Lease not written: %s", error)
            return False
        self._held = held
        if held is not None:
            self._renewed = started
        return held is not None

    async def _known(self) -> Manifest | None:
        return await self._cluster.get("Lease", self._namespace, self._name)

    async def _renew_held(self) -> Manifest | None:
        """Renew what was written last, which asks a busy API server once; None if somebody has written to it since."""
        if self._held is None:
            return None
        try:
            return await self._write(self._held)
        except ApiError as error:
            if error.code not in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND):
                raise
            return None

    async def _write(self, known: Manifest | None) -> Manifest | None:
        now, owners = micro_time(datetime.now(UTC)), await self._install.owners(self._namespace)
        spec = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": math.ceil(self._duration),
            "renewTime": now,
        }
        if known is None:
            first = spec | {"acquireTime": now, "leaseTransitions": 0}
            metadata = {"name": self._name, "namespace": self._namespace, **owners}
            manifest = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": first}
            return await self._cluster.create(manifest)
        old = known.get("spec", {})
        mine = old.get("holderIdentity") == self._identity
        if not mine and not self._run_out(old):
            return None
        if not mine:
            spec |= {"acquireTime": now, "leaseTransitions": old.get("leaseTransitions", 0) + 1}
        return await self._cluster.replace(known | {"metadata": known["metadata"] | owners, "spec": old | spec})

    def _run_out(self, spec: Manifest) -> bool:
        if not spec.get("holderIdentity"):
            return True
        mark = (spec.get("holderIdentity"), spec.get("renewTime"))
        if self._seen is None or self._seen[0] != mark:
            self._seen = (mark, _now())
        return _now() - self._seen[1] >= float(spec.get("leaseDurationSeconds") or self._duration)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _within(seconds: float, answer: Awaitable[bool]) -> bool:
    # Not wait_for, which in Python 3.11 drops a cancellation that comes as the answer does: nothing would end us then.
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError:
        return False
