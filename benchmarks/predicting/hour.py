"""An hour of requests, in a twentieth of the time: the real engine's queue, and the simulator's.

The hour is sent in parts. Before and after each, loads that costs are fitted to tell how much slower the machine is
than it was then, as others may be at work on it: the simulator's steps take so much longer too.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from arctic_model.planning.serving_time import ServingCosts, seconds
from arctic_simulator.requests import Arrival, Crowd, faster
from arctic_simulator.serving import Batching, StepSeconds, percentile, serve
from arctic_workers.inference.engine import Request, Sampling
from benchmarks.form import note
from benchmarks.models import prompts, random_model
from benchmarks.native import InProcess, group_of
from benchmarks.predicting.cases import FITTED_LOADS, MODELS
from benchmarks.predicting.serving import Timed, timed
from benchmarks.predicting.training import Predicted

MODEL = "top 1"
"""None that costs are fitted to."""
HOUR = 3600.0
TIMES = 20.0
"""By which the requests come faster."""
PARTS = 6
SEED = 13
BATCHING = Batching(max_sequences=16)
PERCENTS = (50, 95)
REFERENCES = ("fit a, 4 x 96", "fit a, 16 x 16")


@dataclass
class Queue:
    """What requests met."""

    waiting: list[float] = field(default_factory=list)
    """Requests that waited when each came."""
    first: list[float] = field(default_factory=list)
    """Seconds until the first token."""

    def extend(self, other: "Queue") -> None:
        """Take what others met after these."""
        self.waiting += other.waiting
        self.first += other.first


def step_of(costs: ServingCosts, slower: float = 1.0) -> StepSeconds:
    """Return what a step of the model takes on a machine that is so much slower than the one that costs are of."""
    return lambda step: (slower * seconds(MODELS[MODEL], step, costs),)


def recorded_hour(costs: ServingCosts) -> list[Arrival]:
    """Return the hour's requests, in bursts.

    By the prediction they are three times as many as can be answered, for 30 s in the mean, and then next to none for
    100: a step that is off by 5% moves what is compared by at most 9%, as a simulation says.
    """
    at_once = _crowd(100.0, 100.0).arrivals(20.0, SEED)
    answers = serve([Arrival(0.0, each.prompt, each.answer) for each in at_once], BATCHING, step_of(costs))
    capacity = len(at_once) / max(answer.times[-1] for answer in answers)
    note(f"by the prediction {capacity:.1f} requests a second can be answered")
    return _crowd(0.05 * capacity / TIMES, 3 * capacity / TIMES).arrivals(HOUR, SEED)


def _crowd(rate: float, busy_rate: float) -> Crowd:
    return Crowd(rate, busy_rate, quiet_seconds=100.0, busy_seconds=30.0, prompt=40, answer=20, spread=0.7, longest=320)


def parts_of(arrivals: Sequence[Arrival]) -> Iterator[list[Arrival]]:
    """Yield the hour's parts as they are sent, each from its own beginning."""
    sent, length = faster(arrivals, TIMES), HOUR / TIMES / PARTS
    for part in range(PARTS):
        inside = [each for each in sent if part * length <= each.seconds < (part + 1) * length]
        yield [Arrival(each.seconds - part * length, each.prompt, each.answer) for each in inside]


@contextmanager
def service() -> Iterator[InProcess]:
    """Load the engine that the hour is sent to."""
    with tempfile.TemporaryDirectory() as scratch:
        spec = {"attention": {"maxLength": 1024}, "batching": {"maxSequences": BATCHING.max_sequences}}
        engine = InProcess(group_of(random_model(MODELS[MODEL]), Path(scratch), **spec)[0])
        engine.decode(prompts(BATCHING.max_sequences, 32), 4)  # the first time, memory is still to be given out
        try:
            yield engine
        finally:
            engine.stop()


def queues(
    engine: InProcess, loaded: Mapping[str, InProcess], measured: Mapping[str, Timed], costs: ServingCosts, parts: int
) -> tuple[Queue, Queue]:
    """Send some parts of the hour to an engine, and to the simulator; return what requests met in each."""
    real, simulated = Queue(), Queue()
    before = _slowness(loaded, measured)
    for number, arrivals in enumerate(list(parts_of(recorded_hour(costs)))[:parts]):
        met = engine.wait(_replayed(engine, arrivals))
        after = _slowness(loaded, measured)
        slower = (before + after) / 2
        answers = serve(arrivals, BATCHING, step_of(costs, slower))
        ours = Queue([answer.waiting for answer in answers], [answer.first_token for answer in answers])
        note(
            f"part {number + 1} of {parts}: {len(arrivals)} requests, the machine {slower:.2f} times as slow, first "
            f"token within {percentile(met.first, 50):.3f} and {percentile(met.first, 95):.3f} s, simulated "
            f"{percentile(ours.first, 50):.3f} and {percentile(ours.first, 95):.3f}"
        )
        real.extend(met)
        simulated.extend(ours)
        before = after
    return real, simulated


def _slowness(loaded: Mapping[str, InProcess], measured: Mapping[str, Timed]) -> float:
    """Return how much longer loads take than when costs were fitted to them."""
    now = [(timed(loaded, FITTED_LOADS[name]), measured[name]) for name in REFERENCES for _ in range(2)]
    return statistics.mean(here.whole / then.whole for here, then in now)


async def _replayed(engine: InProcess, arrivals: Sequence[Arrival]) -> Queue:
    pool = prompts(1, sum(each.prompt for each in arrivals))[0]
    queue = Queue(first=[0.0] * len(arrivals))

    async def one(number: int, prompt: Sequence[int], answer: int) -> None:
        asked = time.perf_counter()
        queue.waiting.append(engine.engine.stats().waiting)
        async for _ in engine.engine.generate(Request(tuple(prompt), Sampling(answer, seed=number))):
            queue.first[number] = queue.first[number] or time.perf_counter() - asked

    clients = []
    begin = time.perf_counter()
    for number, arrival in enumerate(arrivals):
        await asyncio.sleep(max(begin + arrival.seconds - time.perf_counter(), 0.0))
        prompt, pool = pool[: arrival.prompt], pool[arrival.prompt :]
        clients.append(asyncio.create_task(one(number, prompt, arrival.answer)))
    await asyncio.gather(*clients)
    return queue


def compared(real: Queue, simulated: Queue) -> dict[str, Predicted]:
    """Return what to compare: requests that wait, and seconds until the first token."""
    return {
        f"{what}, p{percent}": Predicted(percentile(ours, percent), percentile(theirs, percent))
        for what, ours, theirs in (
            ("requests that wait", simulated.waiting, real.waiting),
            ("seconds until the first token", simulated.first, real.first),
        )
        for percent in PERCENTS
    }
