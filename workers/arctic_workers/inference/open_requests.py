"""Which requests an engine has not answered yet: what its figures, and the end of a drain, depend on."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class OpenRequests:
    """Counts requests from when they are asked to when their last token is taken, on one event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._none = asyncio.Event()
        self._none.set()

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

    async def none(self) -> None:
        """Return when there is none."""
        await self._none.wait()
