"""Engines: costs fitted to steps of some models, others' predicted with them, all measured in turns."""

import asyncio
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path

from arctic_model.planning.fitting import Observation, fitted
from arctic_model.planning.serving_time import TYPICAL, EngineStep, ServingCosts, decoding_step, seconds
from arctic_simulator.requests import Arrival
from arctic_simulator.serving import Batching, serve
from arctic_workers.inference.engine import Request, Sampling
from benchmarks.form import note
from benchmarks.models import prompts, random_model
from benchmarks.native import InProcess, group_of
from benchmarks.predicting.cases import FITTED_LOADS, MODELS, PREDICTED_LOADS, Load
from benchmarks.predicting.training import Predicted

SEQUENCES = 64
SPEC = {"attention": {"maxLength": 1024}, "batching": {"maxSequences": SEQUENCES}}


@dataclass(frozen=True)
class Timed:
    """Seconds of a load."""

    first: float
    """Until the first token of all."""
    step: float
    """Between two tokens of a request while all are being answered."""
    whole: float


@dataclass(frozen=True)
class Services:
    """What came of them."""

    costs: ServingCosts
    fitted: Mapping[str, Predicted]
    steps: Mapping[str, Predicted]
    rates: Mapping[str, Predicted]
    """Seconds of whole loads."""


@contextmanager
def engines() -> Iterator[dict[str, InProcess]]:
    """Load all models; each waits until it is asked."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        loaded = {}
        for name, config in MODELS.items():
            loaded[name] = InProcess(group_of(random_model(config), scratch, **SPEC)[0])
            stack.callback(loaded[name].stop)
        yield loaded


def measured_loads(loaded: Mapping[str, InProcess], rounds: int) -> dict[str, Timed]:
    """Return the least of each time of each load: what the machine does when nothing else does."""
    loads = FITTED_LOADS | PREDICTED_LOADS
    for engine in loaded.values():  # the first time, memory is still to be given out
        engine.decode(prompts(SEQUENCES, 16), 2)
    taken: dict[str, list[Timed]] = {name: [] for name in loads}
    for number in range(rounds):
        for name, load in loads.items():
            taken[name].append(timed(loaded, load))
        note(f"round {number + 1} of {rounds} of {len(loads)} loads")
    return {
        name: Timed(*(min(values) for values in zip(*((t.first, t.step, t.whole) for t in times), strict=True)))
        for name, times in taken.items()
    }


def timed(loaded: Mapping[str, InProcess], load: Load) -> Timed:
    """Ask for all of a load at once."""
    engine = loaded[load.model]
    asked = prompts(load.batch, load.prompt)

    async def one(number: int, prompt: Sequence[int]) -> list[float]:
        # Drawn: the likeliest tokens of a random model go in circles, and touch few experts.
        request = Request(tuple(prompt), Sampling(load.answer, seed=number))
        return [time.perf_counter() async for _ in engine.engine.generate(request)]

    async def everything() -> list[list[float]]:
        return list(await asyncio.gather(*starmap(one, enumerate(asked))))

    begin = time.perf_counter()
    times = engine.wait(everything())
    all_started = max(each[0] for each in times)
    ends = [each for each in times[0] if each >= all_started]
    return Timed(
        first=min(each[0] for each in times) - begin,
        step=(ends[-1] - ends[0]) / (len(ends) - 1),
        whole=max(each[-1] for each in times) - begin,
    )


def predicted_loads(measured: Mapping[str, Timed]) -> Services:
    """Fit, and predict."""
    observations = [_observation(load, measured[name]) for name, load in FITTED_LOADS.items()]
    costs = ServingCosts(*fitted(TYPICAL.values, observations))
    note(f"costs of serving: {costs}")
    own = {
        name: Predicted(predict(costs.values), took)
        for name, (predict, took) in zip(FITTED_LOADS, observations, strict=True)
    }
    steps = {name: Predicted(step_seconds(load, costs), measured[name].step) for name, load in PREDICTED_LOADS.items()}
    rates = {
        name: Predicted(whole_seconds(load, costs), measured[name].whole) for name, load in PREDICTED_LOADS.items()
    }
    return Services(costs, own, steps, rates)


def _observation(load: Load, timed: Timed) -> Observation:
    """Of long prompts their reading, of others a step of decoding."""
    config = MODELS[load.model]
    if load.answer > 2:
        return (lambda costs: step_seconds(load, ServingCosts(*costs))), timed.step
    step = prompt_step(load.prompt)
    return (lambda costs: seconds(config, step, ServingCosts(*costs))), timed.first


def prompt_step(tokens: int) -> EngineStep:
    """Count a step that reads one prompt."""
    return EngineStep(tokens, 1, 1, tokens * (tokens + 1) // 2, tokens)


def step_seconds(load: Load, costs: ServingCosts) -> float:
    """Predict a step in the middle of the answers."""
    return seconds(MODELS[load.model], decoding_step(load.batch, load.prompt + load.answer // 2), costs)


def whole_seconds(load: Load, costs: ServingCosts) -> float:
    """Predict the whole load, as the scheduler has it."""
    config = MODELS[load.model]
    arrivals = [Arrival(0.0, load.prompt, load.answer)] * load.batch
    answers = serve(arrivals, Batching(max_sequences=SEQUENCES), lambda step: (seconds(config, step, costs),))
    return max(answer.times[-1] for answer in answers)
