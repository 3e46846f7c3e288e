"""Progress for people: one line a step, with the seconds that it took."""

import contextlib
import sys
import time
from collections.abc import Iterator


class Progress:
    """Numbers the steps of one piece of work and prints `[2/7] kube-apiserver ... 41 s`."""

    def __init__(self, steps: int) -> None:
        """`steps` is how many there will be."""
        self._steps = steps
        self._done = 0

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Print the title when the step starts, and its seconds when it ends."""
        self._done += 1
        _say(f"[{self._done}/{self._steps}] {title} ... ")
        started = time.monotonic()
        try:
            yield
        except BaseException:
            _say("failed\n")
            raise
        _say(f"{time.monotonic() - started:.0f} s\n")


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
