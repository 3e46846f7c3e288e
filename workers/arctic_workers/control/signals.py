"""SIGTERM and SIGINT as flags. A first signal asks for an orderly end, a second one for an end now."""

import queue
import signal
import threading
from types import FrameType


class StopFlag:
    """Two events that threads wait for: `requested`, and `now` once the first has been asked for again."""

    def __init__(self) -> None:
        """Begin unset."""
        self.requested = threading.Event()
        self.now = threading.Event()
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()

    def request(self) -> None:
        """Ask for an end, as a signal does; asked again by a signal only, it becomes urgent."""
        self.requested.set()

    def install(self, *others: signal.Signals) -> "StopFlag":
        """Take SIGTERM, SIGINT and `others` over from now on; main thread only.

        The handler may interrupt the main thread while it holds the lock of one of the events, where setting it would
        deadlock. So the handler only puts into a queue whose `put` is reentrant, and a thread sets the events.
        """
        threading.Thread(target=self._serve, name="signals", daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGINT, *others):
            signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._signals.put(number)

    def _serve(self) -> None:
        self._signals.get()
        self.requested.set()
        self._signals.get()
        self.now.set()
