"""A group of the native engine that serves a trace: its real scheduler and blocks, and steps that only take time.

What decides who waits for whom is the product's own code (`Scheduler`, `BlockManager`, `TokenBudget`); only the model
is left out, so that an hour takes seconds and needs no machine like the one that is asked about.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

from arctic_model.planning.serving_time import EngineStep
from arctic_simulator.requests import Arrival
from arctic_workers.inference.engine import Request, Sampling
from arctic_workers.inference.engines.native.blocks import BLOCK_SIZE, BlockManager
from arctic_workers.inference.engines.native.budget import TokenBudget
from arctic_workers.inference.engines.native.scheduler import Chunk, Scheduler
from arctic_workers.inference.engines.native.sequence import Sequence as Scheduled

StepSeconds = Callable[[EngineStep], Sequence[float]]
"""How long a step takes on each pipeline rank."""


@dataclass(frozen=True)
class Batching:
    """What a manifest says of a group's batches."""

    token_budget: int = 2048
    max_sequences: int = 256
    blocks: int = 1 << 16
    """Of the cache, `BLOCK_SIZE` tokens each."""
    target: float | None = None
    """Seconds between two tokens, where the budget follows such a target."""
    ranks: int = 1
    """Pipeline ranks: as many steps are on their way."""


@dataclass
class Answer:
    """What became of a request; times are seconds of the simulation."""

    arrived: float
    waiting: int
    """Requests that waited when it came."""
    times: list[float] = field(default_factory=list)
    """Of its tokens."""

    @property
    def first_token(self) -> float:
        """Seconds until the first token."""
        return self.times[0] - self.arrived


def serve(arrivals: Iterable[Arrival], batching: Batching, step_seconds: StepSeconds) -> list[Answer]:
    """Serve a trace to its end; returns an answer for each request, in order of arrival. No prompt begins like another.

    Raises ValueError where a request does not fit into the cache.
    """
    environment = simpy.Environment()
    group = _Group(environment, batching, step_seconds)
    environment.process(group.arrive(arrivals))
    environment.run(until=environment.process(group.work()))
    return group.answers


@dataclass(frozen=True)
class _Step:
    chunks: Sequence[Chunk]
    begun: float
    ends: float


class _Group:
    def __init__(self, environment: simpy.Environment, batching: Batching, step_seconds: StepSeconds) -> None:
        self._environment = environment
        self._step_seconds = step_seconds
        self._budget = TokenBudget(batching.token_budget, batching.target)
        self._scheduler = Scheduler(
            BlockManager(batching.blocks, BLOCK_SIZE),
            self._budget,
            max_sequences=batching.max_sequences,
            ranks=batching.ranks,
        )
        self._free_at = [0.0] * batching.ranks
        self._under_way: deque[_Step] = deque()
        self._inbox: simpy.Store = simpy.Store(environment)
        self._open: dict[Scheduled, Answer] = {}
        self._all_came = False
        self.answers: list[Answer] = []

    def arrive(self, arrivals: Iterable[Arrival]) -> Generator[simpy.Event, Any, None]:
        """Ask for all requests, each in its time."""
        for arrival in arrivals:
            yield self._environment.timeout(max(arrival.seconds - self._environment.now, 0.0))
            prompt = (0,) * arrival.prompt  # which tokens those are decides nothing
            sequence = Scheduled(Request(prompt, Sampling(arrival.answer, temperature=0.0)))
            answer = Answer(self._environment.now, len(self._open) - self._scheduler.running)
            self._open[sequence] = answer
            self.answers.append(answer)
            self._inbox.put(sequence)
        self._all_came = True
        self._inbox.put(None)

    def work(self) -> Generator[simpy.Event, Any, None]:
        """Take what has come, begin steps until every rank has one, finish the oldest; as the engine's thread does."""
        while self._open or not self._all_came:
            while self._inbox.items or not self._open:
                if (sequence := (yield self._inbox.get())) is not None:
                    self._scheduler.add(sequence)
                elif not self._open:
                    return
            while free := len(self._free_at) - len(self._under_way):
                chunks = self._scheduler.schedule(free)
                if not chunks:
                    break
                self._under_way.append(self._begun(chunks))
                yield self._until(self._free_at[0])  # rank 0 schedules and computes by turns
            if self._under_way:
                step = self._under_way.popleft()
                yield self._until(step.ends)
                self._finish(step)

    def _begun(self, chunks: Sequence[Chunk]) -> _Step:
        """Let a step go through the ranks, each of which is at one step at a time."""
        begun = ends = float(self._environment.now)
        for rank, seconds in enumerate(self._step_seconds(engine_step(chunks))):
            ends = self._free_at[rank] = max(ends, self._free_at[rank]) + seconds
        return _Step(chunks, begun, ends)

    def _until(self, moment: float) -> simpy.Event:
        return self._environment.timeout(max(moment - self._environment.now, 0.0))

    def _finish(self, step: _Step) -> None:
        self._budget.times.observe(sum(chunk.length for chunk in step.chunks), step.ends - step.begun)
        for chunk in step.chunks:
            self._hand_out(chunk)

    def _hand_out(self, chunk: Chunk) -> None:
        if not chunk.draws:
            return
        taken, reason = self._scheduler.update(chunk, [0] * chunk.draws)
        answer = self._open[chunk.sequence]
        answer.times += [self._environment.now] * taken
        if reason is not None:
            del self._open[chunk.sequence]


def engine_step(chunks: Sequence[Chunk]) -> EngineStep:
    """Count what a step computes."""
    return EngineStep(
        rows=sum(chunk.length for chunk in chunks),
        requests=len(chunks),
        draws=sum(chunk.draws for chunk in chunks),
        seen=sum(chunk.length * chunk.start + chunk.length * (chunk.length + 1) // 2 for chunk in chunks),
        cached=sum(chunk.start + chunk.length for chunk in chunks),
    )


def percentile(values: Iterable[float], percent: float) -> float:
    """Return what so many percent of some values do not exceed, with lines between neighbours."""
    ordered = sorted(values)
    place = percent / 100 * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
