"""What failures of nodes cost a training, by formulas: Young (1974) and Daly (2006), "A higher order estimate of the
optimum checkpoint interval for restart dumps". A world fails as one, so its nodes' rates add up; failures are a Poisson
process, and there is always a node to take a lost one's place (`arctic_simulator.training` lets spares run out).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Interruptions:
    """Seconds that interruptions of a world are about."""

    between_failures: float
    """Mean, of the whole world."""
    checkpoint: float
    """That a checkpoint stops the steps."""
    restart: float
    """From a failure until steps go on; it may fail too."""

    @property
    def young_interval(self) -> float:
        """Seconds of steps between checkpoints that lose least: `sqrt(2 C M)` (Young 1974)."""
        return math.sqrt(2 * self.checkpoint * self.between_failures)

    @property
    def best_interval(self) -> float:
        """The same, better where failures are frequent (Daly 2006, equation 37)."""
        share = self.checkpoint / (2 * self.between_failures)
        if share >= 1:
            return self.between_failures
        return self.young_interval * (1 + math.sqrt(share) / 3 + share / 9) - self.checkpoint

    def seconds(self, work: float, interval: float) -> float:
        """Expected seconds of `work` seconds of steps with a checkpoint after each `interval` (Daly 2006, equation 20).

        `M e^(R/M) (e^((t+C)/M) - 1) W/t`.
        """
        mean = self.between_failures
        try:
            segment = math.exp(self.restart / mean) * math.expm1((interval + self.checkpoint) / mean)
        except OverflowError:  # never, as far as numbers go
            return math.inf
        return mean * segment * work / interval

    def goodput(self, interval: float) -> float:
        """Share of the time that goes to steps that count."""
        return 1 / self.seconds(1.0, interval)


def world_between_failures(nodes: int, node_between_failures: float) -> float:
    """Mean seconds between failures of any of a world's nodes."""
    return node_between_failures / nodes
