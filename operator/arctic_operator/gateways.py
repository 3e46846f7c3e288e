"""Asks gateways how many requests wait in them, over plain HTTP as their metrics are. Decides nothing."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

import aiohttp

from arctic_api.world import Ports
from arctic_operator.cache import Key
from arctic_operator.control import host_of
from arctic_operator.manifests.gateway import WAITING_PATH

ASK_EVERY = 1.0
"""Seconds between two questions: what a service that is scaled to zero takes to notice a request."""
ANSWER_SECONDS = 2.0


class Gateways:
    """Asks the pods of each gateway again and again. All methods belong to one event loop; making it needs none."""

    def __init__(self, on_change: Callable[[Key], None]) -> None:
        """Call `on_change` with a service's key when requests begin to wait, or none does now; it must not block."""
        self._on_change = on_change
        self._addresses: dict[Key, tuple[str, ...]] = {}
        self._waiting: dict[Key, int | None] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._session: aiohttp.ClientSession | None = None

    def ask(self, key: Key, addresses: Sequence[str], port: int = Ports().metrics) -> None:
        """Ask the gateway whose pods are at these addresses from now on; with none it is forgotten."""
        urls = tuple(_url(address, port) for address in addresses)
        if not urls:
            self.forget(key)
            return
        self._addresses[key] = urls
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._go_on_asking(key), name=f"ask the gateway of {key}")

    def forget(self, key: Key) -> None:
        """Ask no more; nothing happens if it is not asked."""
        self._addresses.pop(key, None)
        self._waiting.pop(key, None)
        task = self._tasks.pop(key, None)
        if task is not None:
            task.cancel()

    def waiting(self, key: Key) -> int | None:
        """Return how many requests wait in a gateway; None where that is not known.

        Pods that don't answer are left out where others hold requests, but none of them passes for empty.
        """
        return self._waiting.get(key)

    async def close(self) -> None:
        """Forget all, and close the connections."""
        tasks = list(self._tasks.values())
        for key in list(self._addresses):
            self.forget(key)
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _go_on_asking(self, key: Key) -> None:
        while True:
            answers = await asyncio.gather(*map(self._answer, self._addresses[key]))
            known = sum(answer for answer in answers if answer is not None)
            waiting = known if known or None not in answers else None
            before, self._waiting[key] = self._waiting.get(key), waiting
            if (before is None, bool(before)) != (waiting is None, bool(waiting)):
                self._on_change(key)
            await asyncio.sleep(ASK_EVERY)

    async def _answer(self, url: str) -> int | None:
        """Return the answer of one pod, None for none: a pod may be starting, or gone."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS))
        with suppress(aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError, OverflowError):
            async with self._session.get(url) as answer:
                answer.raise_for_status()
                return max(0, int((await answer.json())["waiting"]))
        return None


def _url(address: str, port: int) -> str:
    return f"http://{host_of(address)}:{port}{WAITING_PATH}"
