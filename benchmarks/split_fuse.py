"""Time between two tokens of the native engine while long prompts arrive: with the token budget against without it.

Sixteen clients are being answered, and one after another long prompts come and are each asked for a few tokens. With
the budget off a prompt is read in one step, and all others wait for it; with it, or with a target for the time between
tokens, prompts are read in pieces beside the answers. The same work is done in all cases, in turn, several rounds:
throughput is all tokens of it, read and written, by the time that it took.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from arctic_workers.inference.engine import Request, Sampling
from benchmarks.drawing import Chart
from benchmarks.form import arguments, draw, finish, in_alternation, print_table, spread, wait_for_quiet
from benchmarks.models import prompts, random_model
from benchmarks.native import InProcess, group_of

CLIENTS = 16
PROMPT, ANSWER = 32, 96
ARRIVALS = 4
LONG, LONG_ANSWER = 1024, 4
EVERY = 16
"""Tokens that the first client gets between two arrivals."""
OFF = "budget off"
BUDGETS: dict[str, dict[str, Any]] = {
    OFF: {"tokenBudget": 1_048_576},
    "tokenBudget 256": {"tokenBudget": 256},
    "target 400ms": {"tokenBudget": 1_048_576, "targetInterTokenLatency": "400ms"},
}
JUDGED = "tokenBudget 256"


@dataclass(frozen=True)
class Run:
    """One run of the whole work."""

    gaps: list[float]
    """Seconds between two tokens of a client, the shortest first."""
    throughput: float
    """Tokens a second."""

    @property
    def p99(self) -> float:
        """What 99 of 100 of them do not exceed."""
        return self.gaps[int(0.99 * len(self.gaps))]


def main() -> None:
    """Print the table and the figures."""
    told = arguments(__doc__, "one round")
    folder = random_model()
    wait_for_quiet()
    taken: dict[str, list[Run]] = {name: [] for name in BUDGETS}
    with tempfile.TemporaryDirectory() as scratch:
        engines = {name: _engine(folder, Path(scratch), budget) for name, budget in BUDGETS.items()}

        def measure(name: str) -> Callable[[], float]:
            def once() -> float:
                taken[name].append(engines[name].wait(_work(engines[name])))
                return taken[name][-1].p99

            return once

        for engine in engines.values():
            engine.decode(prompts(CLIENTS, PROMPT), 8)
        in_alternation(1 if told.quick else 3, {name: measure(name) for name in BUDGETS})
        for engine in engines.values():
            engine.stop()
    report(taken)
    draw(told, chart_of(taken), "split_fuse")
    finish(told, figures_of(taken), less_is_better=("itl_p99_ratio",))


def _engine(folder: Path, scratch: Path, budget: dict[str, Any]) -> InProcess:
    batching = {"maxSequences": CLIENTS + ARRIVALS, **budget}
    memory = {"kvCache": {"memoryFraction": 0.2}}
    return InProcess(group_of(folder, scratch, attention={"maxLength": 2048}, batching={**batching, **memory})[0])


async def _work(engine: InProcess) -> Run:
    """Answer all clients while the long prompts arrive, by the progress of the first client: alike in all cases."""
    asked = prompts(CLIENTS, PROMPT)
    long = prompts(ARRIVALS, LONG)
    times: list[list[float]] = [[] for _ in asked]
    arrivals: list[asyncio.Task[None]] = []

    async def read(prompt: list[int]) -> None:
        async for _ in engine.engine.generate(Request(tuple(prompt), Sampling(LONG_ANSWER, temperature=0.0))):
            pass

    async def client(index: int) -> None:
        request = Request(tuple(asked[index]), Sampling(ANSWER, temperature=0.0))
        async for _ in engine.engine.generate(request):
            times[index].append(time.perf_counter())
            if index == 0 and len(times[0]) % EVERY == 0 and len(arrivals) < ARRIVALS:
                arrivals.append(asyncio.create_task(read(long[len(arrivals)])))

    begin = time.perf_counter()
    await asyncio.gather(*map(client, range(CLIENTS)))
    await asyncio.gather(*arrivals)
    seconds = time.perf_counter() - begin
    gaps = sorted(later - earlier for one in times for earlier, later in pairwise(one))
    tokens = CLIENTS * (PROMPT + ANSWER) + ARRIVALS * (LONG + LONG_ANSWER)
    return Run(gaps, tokens / seconds)


def report(taken: dict[str, list[Run]]) -> None:
    """Print what was taken."""
    columns = ("", "p50 between tokens, ms", "p99, ms", "tokens/s", "p99 of that off", "throughput of that off")
    p99, throughput = _medians(taken)
    print_table(
        f"{CLIENTS} clients of {ANSWER} tokens each, {ARRIVALS} prompts of {LONG} tokens arrive",
        columns,
        [
            (
                name,
                spread([1e3 * statistics.median(run.gaps) for run in runs]),
                spread([1e3 * run.p99 for run in runs]),
                spread([run.throughput for run in runs]),
                f"{p99[name] / p99[OFF]:.3f}",
                f"{throughput[name] / throughput[OFF]:.3f}",
            )
            for name, runs in taken.items()
        ],
    )


def chart_of(taken: dict[str, list[Run]]) -> Chart:
    """Show, by budget, how long all but so many of the times between tokens are."""

    def line(runs: list[Run]) -> list[tuple[float, float]]:
        gaps = sorted(gap for run in runs for gap in run.gaps)
        return [(percent / 10, 1e3 * gaps[min(percent * len(gaps) // 1000, len(gaps) - 1)]) for percent in range(1001)]

    lines = {name: line(runs) for name, runs in taken.items()}
    title = f"{CLIENTS} clients while {ARRIVALS} prompts of {LONG} tokens arrive"
    return Chart(title, "percent of the times between two tokens", "at most, ms", lines, logarithmic=True)


def figures_of(taken: dict[str, list[Run]]) -> dict[str, float]:
    """Return the ratios of medians."""
    p99, throughput = _medians(taken)
    return {
        "itl_p99_ratio": p99[JUDGED] / p99[OFF],
        "throughput_ratio": throughput[JUDGED] / throughput[OFF],
    }


def _medians(taken: dict[str, list[Run]]) -> tuple[dict[str, float], dict[str, float]]:
    p99 = {name: statistics.median(run.p99 for run in runs) for name, runs in taken.items()}
    return p99, {name: statistics.median(run.throughput for run in runs) for name, runs in taken.items()}


if __name__ == "__main__":
    main()
