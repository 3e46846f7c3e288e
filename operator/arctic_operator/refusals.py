"""Why children have no pods: asked of the API server, which goes through all events of a namespace for each answer."""

import asyncio
import time

from arctic_operator.cluster import Cluster
from arctic_operator.observed import STATEFUL_SET, GroupSet, Job

REFUSED_SECONDS = 5.0
"""Time for which what is known of a namespace is taken for new. Children have been without pods for longer."""
ADMIT = "change what refuses them, or the manifest: they are made once they are admitted"
NOT_MADE = "LeaderWorkerSet's controller has not made their StatefulSet: see that it runs, and what its log says"


class Refusals:
    """Asks for one object only if anything was refused for it: where thousands begin at once, nothing was for most."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._refused: dict[str, tuple[frozenset[str], float]] = {}
        """By namespace for which objects, and when that was asked."""
        self._asking = asyncio.Lock()

    async def of(self, namespace: str, child: Job | GroupSet) -> str:
        """Return why a child has too few pods; a LeaderWorkerSet's are made by StatefulSets that nobody watches."""
        if isinstance(child, Job) and child.suspended:
            return await self._cluster.admission(namespace, child.uid)
        makers = child.makers if isinstance(child, GroupSet) else ()
        sets = [made for name in makers if (made := await self._cluster.get(STATEFUL_SET, namespace, name))]
        uids = [made["metadata"]["uid"] for made in sets] if makers else [child.uid]
        refused = await self._refused_in(namespace)
        refusals = [await self._cluster.refusal(namespace, uid) for uid in uids if uid in refused]
        sentence = next(filter(None, refusals), "")
        if sentence:
            return f"{sentence} ({ADMIT})"
        return NOT_MADE if len(sets) < len(makers) else ""

    async def _refused_in(self, namespace: str) -> frozenset[str]:
        async with self._asking:
            refused, asked = self._refused.get(namespace, (frozenset(), float("-inf")))
            if time.monotonic() - asked >= REFUSED_SECONDS:
                refused = await self._cluster.refused(namespace)
                self._refused[namespace] = refused, time.monotonic()
            return refused
