"""Which objects are due: each once in the queue and at one worker at a time, with delays and back-off. No I/O."""

import asyncio
import heapq
import random
from collections import deque
from typing import Generic, TypeVar

K = TypeVar("K")

FIRST_RETRY, LAST_RETRY = 0.5, 300.0
"""Seconds before a failed object is tried again: doubled each time, then half of it drawn."""
FEW = 64
"""Delays that hold no more and are not worth sweeping: a key that comes sooner leaves the later one behind."""


class WorkQueue(Generic[K]):
    """A queue of keys, fair by arrival. What is added while it is worked on comes again afterwards."""

    def __init__(self) -> None:
        self._ready: deque[K] = deque()
        self._queued: set[K] = set()
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._due: dict[K, float] = {}
        self._delayed: list[tuple[float, int, K]] = []
        self._order = 0
        self._failures: dict[K, int] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Return the number of keys that are due."""
        return len(self._ready)

    def add(self, key: K) -> None:
        """Make a key due now."""
        self._due.pop(key, None)
        if key in self._working:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.append(key)
            self._changed.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Make a key due in a while, unless it is due sooner anyway."""
        due = asyncio.get_running_loop().time() + seconds
        if key in self._queued or self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        self._order += 1
        heapq.heappush(self._delayed, (due, self._order, key))
        if len(self._delayed) > 2 * len(self._due) + FEW:
            self._delayed = [each for each in self._delayed if self._due.get(each[2]) == each[0]]
            heapq.heapify(self._delayed)
        self._changed.set()

    def retry(self, key: K) -> float:
        """Make a key that failed due after a back-off, and return its seconds."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        ceiling = min(LAST_RETRY, FIRST_RETRY * 2 ** min(failures - 1, 20))
        seconds = random.uniform(ceiling / 2, ceiling)
        self.add_after(key, seconds)
        return seconds

    def forget(self, key: K) -> None:
        """End a key's back-off."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """Return the next key that is due, and hold it until `done`."""
        while True:
            self._promote()
            if self._ready:
                key = self._ready.popleft()
                self._queued.discard(key)
                self._working.add(key)
                return key
            self._changed.clear()
            timeout = self._delayed[0][0] - asyncio.get_running_loop().time() if self._delayed else None
            # Not wait_for, which in Python 3.11 drops a cancellation that comes as the answer does.
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def done(self, key: K) -> None:
        """Give a key back."""
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _promote(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._delayed and self._delayed[0][0] <= now:
            due, _, key = heapq.heappop(self._delayed)
            if self._due.get(key) == due:
                self.add(key)
