"""A training whose nodes fail: checkpoints, restarts, spare nodes that run out and come back repaired.

One event a failure, a checkpoint and a repair, however many nodes there are: thousands of GPUs take no longer than ten.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import simpy

from arctic_model.planning.failures import Interruptions, world_between_failures


@dataclass(frozen=True)
class Fleet:
    """Nodes."""

    nodes: int
    """That the world takes: it runs on all of them or not at all."""
    spares: int
    """That stand by. They do not fail while they do."""
    node_between_failures: float
    """Mean seconds between failures of one node that works."""
    repair: float
    """Seconds until a failed node stands by again."""


@dataclass(frozen=True)
class Run:
    """A training on a fleet."""

    work: float
    """Seconds of steps if nothing fails."""
    interval: float
    """Seconds of steps between checkpoints."""
    checkpoint: float
    """Seconds that a checkpoint stops the steps."""
    restart: float
    """Seconds from when all nodes are there until steps go on."""

    def interruptions(self, fleet: Fleet) -> Interruptions:
        """The same for formulas, which know no lack of nodes."""
        between = world_between_failures(fleet.nodes, fleet.node_between_failures)
        return Interruptions(between, self.checkpoint, self.restart)


@dataclass
class Outcome:
    """Seconds of a run, by what they went to; together they are all of it."""

    work: float = 0.0
    """Steps that counted."""
    lost: float = 0.0
    """Steps and checkpoints that a failure undid."""
    checkpoints: float = 0.0
    restarts: float = 0.0
    waiting: float = 0.0
    """For a node, as no spare stood by."""
    failures: int = 0

    @property
    def seconds(self) -> float:
        """From its beginning to its end."""
        return self.work + self.lost + self.checkpoints + self.restarts + self.waiting

    @property
    def goodput(self) -> float:
        """Share of the time that went to steps that counted."""
        return self.work / self.seconds


def train(run: Run, fleet: Fleet, *, seed: int) -> Outcome:
    """Run a training to its end; the same from the same seed."""
    environment = simpy.Environment()
    world = _World(environment, run, fleet, random.Random(seed))
    environment.run(until=environment.process(world.live()))
    return world.outcome


class _World:
    def __init__(self, environment: simpy.Environment, run: Run, fleet: Fleet, drawn: random.Random) -> None:
        self._environment = environment
        self._run = run
        self._fleet = fleet
        self._drawn = drawn
        self._rate = fleet.nodes / fleet.node_between_failures
        self._spares = simpy.Container(environment, init=fleet.spares)
        self._failure = self._next_failure()
        self.outcome = Outcome()

    def _next_failure(self) -> simpy.Event:
        return self._environment.timeout(self._drawn.expovariate(self._rate))

    def live(self) -> Generator[simpy.Event, Any, None]:
        """Make segments until the work is done; after each failure get a node and start again."""
        run, outcome = self._run, self.outcome
        while outcome.work < run.work:
            segment = min(run.interval, run.work - outcome.work)
            if (yield from self._passes(segment + run.checkpoint)):
                outcome.work += segment
                outcome.checkpoints += run.checkpoint
            else:
                yield from self._recover()

    def _passes(self, seconds: float) -> Generator[simpy.Event, Any, bool]:
        """Let time pass; returns False where the world fails within it, and what it did until then is lost."""
        begun = self._environment.now
        yield self._environment.timeout(seconds) | self._failure
        if not self._failure.processed:
            return True
        self.outcome.lost += float(self._environment.now - begun)
        self.outcome.failures += 1
        self._environment.process(self._repair())
        return False

    def _recover(self) -> Generator[simpy.Event, Any, None]:
        """Get a node in place of the lost one, and start: as often as it takes."""
        started = False
        while not started:
            begun = self._environment.now
            yield self._spares.get(1)
            self.outcome.waiting += float(self._environment.now - begun)
            self._failure = self._next_failure()
            started = yield from self._passes(self._run.restart)
        self.outcome.restarts += self._run.restart

    def _repair(self) -> Generator[simpy.Event, Any, None]:
        yield self._environment.timeout(self._fleet.repair)
        yield self._spares.put(1)
