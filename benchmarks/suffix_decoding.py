"""Tokens a second of the native engine with suffix decoding against without it: where it should pay, and where not.

The model is random and knows no text, so what it writes greedily soon goes in circles, as edits and agents' calls do in
part, and what it draws at temperature 1 never repeats itself. Both engines write the same tokens, in turn.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from arctic_workers.inference.engine import Request, Sampling
from benchmarks.form import arguments, finish, in_alternation, print_table, ratio, spread, wait_for_quiet
from benchmarks.models import prompts, random_model
from benchmarks.native import InProcess, group_of, rate_of

PROMPT, ANSWER = 32, 192


@dataclass(frozen=True)
class Case:
    """What is asked."""

    sequences: int
    temperature: float


CASES = {
    "circles_1": Case(1, 0.0),
    "circles_16": Case(16, 0.0),
    "fresh_1": Case(1, 1.0),
    "fresh_16": Case(16, 1.0),
}


def main() -> None:
    """Print the table and the figures."""
    told = arguments(__doc__, "one round")
    folder = random_model()
    wait_for_quiet()
    with tempfile.TemporaryDirectory() as scratch:
        engines = {kind: _engine(folder, Path(scratch), proposes=kind == "with") for kind in ("with", "without")}

        def measure(case: Case, kind: str) -> Callable[[], float]:
            return lambda: _decode(engines[kind], case)

        measures = {f"{name} {kind}": measure(case, kind) for name, case in CASES.items() for kind in engines}
        taken = in_alternation(1 if told.quick else 5, measures)
        for engine in engines.values():
            engine.stop()
    ratios = {f"{name}_ratio": ratio(taken[f"{name} with"], taken[f"{name} without"]) for name in CASES}
    print_table(
        "Tokens a second",
        ("", "sequences", "with", "without", "ratio"),
        [
            (
                name,
                case.sequences,
                spread(taken[f"{name} with"]),
                spread(taken[f"{name} without"]),
                f"{ratios[f'{name}_ratio']:.3f}",
            )
            for name, case in CASES.items()
        ],
    )
    finish(told, ratios)


def _engine(folder: Path, scratch: Path, *, proposes: bool) -> InProcess:
    batching = {"maxSequences": 16, "suffixDecoding": proposes, "kvCache": {"memoryFraction": 0.2}}
    return InProcess(group_of(folder, scratch, attention={"maxLength": 512}, batching=batching)[0])


def _decode(engine: InProcess, case: Case) -> float:
    async def one(prompt: list[int], seed: int) -> list[float]:
        sampling = Sampling(ANSWER, temperature=case.temperature, seed=seed)
        return [time.perf_counter() async for _ in engine.engine.generate(Request(tuple(prompt), sampling))]

    async def all_of_them() -> list[list[float]]:
        return list(await asyncio.gather(*map(one, prompts(case.sequences, PROMPT), range(case.sequences))))

    return rate_of(engine.wait(all_of_them()))


if __name__ == "__main__":
    main()
