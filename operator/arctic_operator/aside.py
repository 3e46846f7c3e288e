"""A second event loop, in a thread of its own: for what must not wait until the first one has time."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def run_in(loop: asyncio.AbstractEventLoop, make: Callable[[], Awaitable[T]]) -> T:
    """Run in another thread's loop what `make` makes there, and return what it returns or raises.

    Where this is cancelled, that is; and this ends when that has ended.
    """
    here = asyncio.get_running_loop()
    ended: asyncio.Future[T] = here.create_future()
    tasks: list[asyncio.Future[T]] = []

    def begin() -> None:
        tasks.append(asyncio.ensure_future(make()))
        tasks[0].add_done_callback(lambda task: here.call_soon_threadsafe(_hand_over, task, ended))

    loop.call_soon_threadsafe(begin)
    while not ended.done():
        try:
            await asyncio.wait([ended])
        except asyncio.CancelledError:
            loop.call_soon_threadsafe(lambda: tasks[0].cancel())
    return ended.result()


def _hand_over(task: asyncio.Future[T], ended: asyncio.Future[T]) -> None:
    if task.cancelled():
        ended.cancel()
    elif error := task.exception():
        ended.set_exception(error)
    else:
        ended.set_result(task.result())


class Aside:
    """The loop and its thread, while the context lasts."""

    def __init__(self, name: str) -> None:
        """`name` is the thread's."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)

    async def __aenter__(self) -> "Aside":
        """Start the thread."""
        self._thread.start()
        return self

    async def __aexit__(self, *_: Any) -> None:
        """End it; what it ran has ended."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()

    async def run(self, make: Callable[[], Awaitable[T]]) -> T:
        """See `run_in`."""
        return await run_in(self._loop, make)
