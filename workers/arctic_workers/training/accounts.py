"""Where an attempt's time goes, and how fast it is. No torch."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

RATE_STEPS = 20
"""Steps that tokens a second are averaged over."""
DATA, COMPUTE, COMMUNICATION, CHECKPOINT, EVALUATION, PAUSE = PARTS = (
    *("data", "compute", "communication", "checkpoint", "evaluation", "pause"),
)
"""What the time of a training is spent on, as its main thread sees it: what is hidden behind compute counts as such."""


class TimeParts:
    """Seconds of each part since the attempt began. Parts may lie in each other: each second is counted once."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._since = clock()
        self._part = COMPUTE
        self._seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Count the time of a block as a part's, and not as that of the part around it."""
        around = self._switch(part)
        try:
            yield
        finally:
            self._switch(around)

    def _switch(self, part: str) -> str:
        now = self._clock()
        self._seconds[self._part] += now - self._since
        self._since = now
        part, self._part = self._part, part
        return part

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part up to now."""
        self._switch(self._part)
        return dict(self._seconds)


class Rate:
    """Tokens a second over the last steps, which may differ in their tokens."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque(maxlen=RATE_STEPS + 1)

    def note(self, moment: float, tokens: int) -> None:
        """Take in a step that ended at a moment (in seconds) with so many tokens trained since the run began."""
        self._steps.append((moment, tokens))

    def clear(self) -> None:
        """Begin anew: what comes next does not follow at once on what was."""
        self._steps.clear()

    def per_second(self) -> float:
        """Return tokens a second, 0 before the second step."""
        if len(self._steps) < 2:
            return 0.0
        (began, before), (ended, after) = self._steps[0], self._steps[-1]
        return (after - before) / (ended - began) if ended > began else 0.0
