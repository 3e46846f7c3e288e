"""Groups of the native engine whose ranks are processes on cores of their own, and how fast they decode.

As a program it is rank 0 of a group: it reads how many sequences to decode and how many tokens of each, a line a time,
and writes tokens a second.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from arctic_api.world import NODE_RANK_VARIABLE, WORLD_VARIABLE, InferenceGroup
from benchmarks.models import prompts
from benchmarks.native import InProcess

PROMPT = 8
"""Tokens of each prompt."""


@dataclass(frozen=True)
class Place:
    """Where a rank runs: its cores, and the command that takes it into a network of its own, if it has one."""

    cores: tuple[int, ...]
    inside: tuple[str, ...] = ()


class Pinned:
    """A running group."""

    def __init__(self, first: subprocess.Popen[str], log: Path) -> None:
        self._first = first
        self._log = log

    def decode(self, sequences: int, count: int) -> float:
        """Return tokens a second while all sequences are being answered, greedily, with so many tokens each."""
        assert self._first.stdin is not None
        assert self._first.stdout is not None
        print(sequences, count, file=self._first.stdin, flush=True)
        said = self._first.stdout.readline()
        if not said:
            sys.exit(f"rank 0 of a group ended:\n{self._log.read_text()}")
        return float(said)


@contextmanager
def pinned(groups: Sequence[InferenceGroup], places: Sequence[Place]) -> Iterator[Pinned]:
    """Start a group's processes, each with a thread for each of its cores, and end them."""
    programs = ["benchmarks.pinned", *["arctic_workers.inference"] * (len(groups) - 1)]
    with ExitStack() as stack:
        # Rank 0 ends the group when nothing more comes, so it is left first.
        processes = [
            stack.enter_context(_start(program, group, rank, place))
            for rank, (program, group, place) in reversed(list(enumerate(zip(programs, groups, places, strict=True))))
        ]
        yield Pinned(processes[-1], _log_of(groups[0]))


def _log_of(group: InferenceGroup) -> Path:
    return Path(f"{group.termination_message}.log")


def _start(program: str, group: InferenceGroup, rank: int, place: Place) -> subprocess.Popen[str]:
    told = {WORLD_VARIABLE: group.model_dump_json(by_alias=True), NODE_RANK_VARIABLE: str(rank)}
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | told
    cores = ",".join(map(str, place.cores))
    with _log_of(group).open("wb") as log:
        return subprocess.Popen(
            [*place.inside, "taskset", "-c", cores, sys.executable, "-m", program],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log if rank else subprocess.PIPE,
            stderr=log,
            text=True,
        )


def _be_first() -> None:
    engine = InProcess(InferenceGroup.model_validate_json(os.environ[WORLD_VARIABLE]))
    for line in sys.stdin:
        sequences, count = map(int, line.split())
        print(engine.decode(prompts(sequences, PROMPT), count), flush=True)
    engine.stop()


if __name__ == "__main__":
    _be_first()
