"""When a loss jumps: told from the losses before it. Pure, the same on all ranks, and again after a restart."""

import math
import statistics
from collections import deque
from collections.abc import Iterable

WINDOW = 128
"""Losses of the stage, the latest ones, that a new one is compared with."""
LEAST = 16
"""Losses before anything is called a spike: a stage begins with text that the model may not know."""
DEVIATIONS = 8.0
"""Spread above the median beyond which a loss is a spike, in standard deviations."""
LEAST_JUMP = 0.05
"""Share of the median that a spike is above it, at least: a loss that hardly varies is allowed to begin to."""
_DEVIATION_OF_MAD = 1.4826  # a normal distribution's standard deviation, by its median absolute deviation


class Spikes:
    """The losses of a stage, and whether another one is out of line with them.

    The median and the median absolute deviation are moved by no single value, so that one spike does not hide the next.
    """

    def __init__(self, losses: Iterable[float] = ()) -> None:
        """Begin with the latest losses of the stage, oldest first."""
        self._losses = deque(losses, maxlen=WINDOW)

    @property
    def losses(self) -> list[float]:
        """What a checkpoint keeps."""
        return list(self._losses)

    def clear(self) -> None:
        """Begin anew, as with a stage."""
        self._losses.clear()

    def note(self, loss: float) -> None:
        """Take in the loss of a step that was made."""
        self._losses.append(loss)

    def limit(self) -> float:
        """Return the loss from which on one is a spike; infinite while there are too few to tell."""
        if len(self._losses) < LEAST:
            return math.inf
        median = statistics.median(self._losses)
        spread = statistics.median(abs(loss - median) for loss in self._losses)
        return median + max(DEVIATIONS * _DEVIATION_OF_MAD * spread, LEAST_JUMP * median)

    def is_spike(self, loss: float) -> bool:
        """Whether a loss is far above those before it, or no number."""
        return not math.isfinite(loss) or loss > self.limit()
