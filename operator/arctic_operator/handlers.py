"""kopf's handlers of our resources: an event says only "look at this object"."""

from collections.abc import Callable, Iterator
from random import uniform
from typing import Any

import kopf

from arctic_operator.cache import CUSTOM_KINDS
from arctic_operator.cluster import PAGE, RESOURCES

Watcher = Callable[[str, dict[str, Any]], None]
"""Takes the kind of event (`DELETED` or another) and the object."""

LONGEST_WAIT = 30.0
IDLE_SECONDS = 0.1
"""Time for which the task that handles an object's events waits for the next one, and holds the last one whole."""


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


def build_registry(watcher: Watcher) -> kopf.OperatorRegistry:
    """Return the handlers; they leave no finalizer and no annotation on anybody's object."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)  # type: ignore[untyped-decorator]
    async def login(**kwargs: Any) -> Any:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    for kind in CUSTOM_KINDS:
        group, version = RESOURCES[kind].api_version.split("/")

        @kopf.on.event(group, version, RESOURCES[kind].plural, registry=registry, id=kind)  # type: ignore[untyped-decorator]
        async def look(event: Any, kind: str = kind, **_: Any) -> None:
            watcher(event["type"] or "", {"kind": kind} | dict(event["object"]))

    return registry


def kopf_settings() -> kopf.OperatorSettings:
    """Return kopf's settings: never give up, write nothing, hold little."""
    result = kopf.OperatorSettings()
    result.networking.error_backoffs = EndlessBackoff()
    result.persistence.diffbase_storage = NothingKept()
    result.posting.enabled = False
    result.queueing.idle_timeout = IDLE_SECONDS
    result.scanning.disabled = True
    result.peering.standalone = True
    result.watching.chunk_size = PAGE
    return result
