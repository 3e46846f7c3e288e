"""Which requests an engine has not answered yet: what its figures, and the end of a drain, depend on."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace

from arctic_workers.inference.engine import Output


class OpenRequests:
    """Counts requests from when they are asked to when their last token is taken, on one event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._none = asyncio.Event()
        self._none.set()
        self._making: set[asyncio.Task[None]] = set()

    @property
    def unmade(self) -> int:
        """Those whose `answer` is not all there yet: the others wait for their reader alone."""
        return len(self._making)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count a request for as long as this is entered."""
        self.count += 1
        self._none.clear()
        try:
            yield
        finally:
            self.count -= 1
            if not self.count:
                self._none.set()

    async def answer(self, outputs: AsyncGenerator[Output, None]) -> AsyncGenerator[Output, None]:
        """Count a request while its outputs are read, and yield them with when they were made, which no reader delays.

        Closing the iterator closes `outputs`. Raises what these raise.
        """
        made: asyncio.Queue[Output | Exception | None] = asyncio.Queue()
        with self.one():
            making = asyncio.create_task(_make(outputs, made))
            self._making.add(making)
            making.add_done_callback(self._making.discard)
            try:
                while (output := await made.get()) is not None:
                    if isinstance(output, Exception):
                        raise output
                    yield output
            finally:
                making.cancel()
                await asyncio.gather(making, return_exceptions=True)

    async def none(self) -> None:
        """Return when there is none."""
        await self._none.wait()


async def _make(outputs: AsyncGenerator[Output, None], made: asyncio.Queue[Output | Exception | None]) -> None:
    """Put outputs into a queue as they are made, and what ends them: an error, or None."""
    try:
        async with aclosing(outputs):
            async for output in outputs:
                made.put_nowait(replace(output, made=time.monotonic()))
        made.put_nowait(None)
    except Exception as error:  # it is the reader's
        made.put_nowait(error)
