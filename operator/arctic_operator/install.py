"""Whose the objects are that the operator keeps for itself: its Deployment's, so that they go with it."""

from arctic_operator.cache import Manifest
from arctic_operator.cluster import Cluster
from arctic_operator.settings import Settings


class Install:
    """The Deployment that this operator is of, read once."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster, self._namespace, self._name = cluster, settings.namespace, settings.deployment
        self._owners: dict[str, list[Manifest]] | None = None

    async def owners(self, namespace: str) -> dict[str, list[Manifest]]:
        """Return the metadata's part that says so; empty outside a Deployment, and in other namespaces than its own.

        An owner in another namespace counts as one that is gone.
        """
        if not self._name or namespace != self._namespace:
            return {}
        if self._owners is None:
            found = await self._cluster.get("Deployment", self._namespace, self._name)
            if found is None:
                return {}
            reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": self._name}
            self._owners = {"ownerReferences": [reference | {"uid": found["metadata"]["uid"]}]}
        return self._owners
