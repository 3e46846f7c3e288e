"""kopf's handlers: an event says only "look at this object"."""

from collections.abc import Callable, Iterator
from random import uniform
from typing import Any

import kopf

from arctic_operator.cache import CUSTOM_KINDS
from arctic_operator.cluster import CHILD_KINDS, RESOURCES, selector_of
from arctic_operator.observed import LEADER_WORKER_SET
from arctic_operator.settings import Settings

Watcher = Callable[[str, dict[str, Any]], None]
"""Takes the kind of event (`DELETED` or another) and the object."""

NODES = ("", "v1", "nodes")
LONGEST_WAIT = 30.0


class NothingKept(kopf.DiffBaseStorage):  # type: ignore[misc]  # kopf has no types
    """What kopf remembers of an object to find out what has changed: nothing, as it asks nobody to handle changes.

    It would copy each object twice an event.
    """

    def build(self, **_: Any) -> Any:
        """Return what is compared."""
        return {}

    def fetch(self, **_: Any) -> Any:
        """Return what was compared last."""
        return None

    def store(self, **_: Any) -> None:
        """Keep it."""


class EndlessBackoff:
    """Seconds between tries of a list or watch that fails; endless, since after the last kopf gives the watcher up."""

    def __iter__(self) -> Iterator[float]:
        """Begin anew, as each failing request does."""
        ceiling = 1.0
        while True:
            yield uniform(ceiling / 2, ceiling)
            ceiling = min(LONGEST_WAIT, 2 * ceiling)


def watched(settings: Settings) -> dict[str, tuple[str, str, str]]:
    """Return group, version and plural of each watched kind."""
    kinds = {}
    asked = (LEADER_WORKER_SET,) if settings.leader_worker_sets else ()
    for kind in (*CUSTOM_KINDS, *CHILD_KINDS, *asked, "Lease"):
        group, _, version = RESOURCES[kind].api_version.rpartition("/")
        kinds[kind] = (group, version, RESOURCES[kind].plural)
    return kinds | ({"Node": NODES} if settings.read_nodes else {})


def build_registry(settings: Settings, watcher: Watcher) -> kopf.OperatorRegistry:
    """Return the handlers; they leave no finalizer and no annotation on anybody's object."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)  # type: ignore[untyped-decorator]
    async def login(**kwargs: Any) -> Any:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    for kind, resource in watched(settings).items():

        @kopf.on.event(*resource, registry=registry, id=kind)  # type: ignore[untyped-decorator]
        async def look(event: Any, kind: str = kind, **_: Any) -> None:
            watcher(event["type"] or "", {"kind": kind} | dict(event["object"]))

    return registry


def kopf_settings(settings: Settings) -> kopf.OperatorSettings:
    """Return kopf's settings: watch only what is ours, never give up, write nothing."""
    result = kopf.OperatorSettings()
    for kind, resource in watched(settings).items():
        if kind not in (*CUSTOM_KINDS, "Node"):
            result.watching.label_selectors[resource] = selector_of(kind)
    result.networking.error_backoffs = EndlessBackoff()
    result.persistence.diffbase_storage = NothingKept()
    result.posting.enabled = False
    result.scanning.disabled = True
    result.peering.standalone = True
    return result
