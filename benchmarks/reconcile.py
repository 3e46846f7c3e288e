"""How fast trainings come to run under our operator, against what the control plane can do, and against Kubeflow's.

On a real control plane (etcd, kube-apiserver, kube-controller-manager, kube-scheduler, as the local cluster runs them)
with KWOK's nodes, objects of two pods each are made, 32 requests at a time, and each is waited for until both of its
pods run and it says so itself. Contestants take turns, each on a control plane of its own, empty and just started:

- limit: a client that makes the same children and writes the status as often, 32 objects at a time, and does nothing
  else: no reading, no watching, no deciding. That twice as many at a time are no faster shows that it is a limit.
- ours: the operator as the chart runs it, with a gRPC stream with mutual TLS to each training. The workers' control
  servers are real ones, in one process, at their pods' addresses, all of which lead back to this machine.
- training-operator v1.8.1 as shipped, with PyTorchJobs of a master and a worker.
- Trainer v2.0.0 with JobSet v0.8.2, as shipped, and with the limits of their clients raised to 1,000 requests a second.

The peers make less: no certificates and no policies. Everything shares this machine's processors, among it what plays
the kubelets, the workers and the users. The limits of their clients, and no machine, say how fast the peers are as
shipped: with 1,000 objects they run once, in minutes, and with 3,000, which takes them an hour, not at all, but only
the limit and ours, once. An hour; needs root, and ten minutes of compiling the first time.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from arctic_cluster import binaries
from arctic_cluster.prepare import build
from benchmarks.form import arguments, finish, note, print_table, spread, wait_for_quiet
from benchmarks.processes import resident
from benchmarks.reconciling import ours, peers
from benchmarks.reconciling.objects import PLAN
from benchmarks.reconciling.plane import Plane, enter_own_network
from benchmarks.reconciling.race import AT_ONCE, Kind, Run, cpu_seconds, quantile, race

LIMIT, WIDER, OURS = "limit", "limit, 64 at a time", "ours"
KUBEFLOW, TRAINER, UNTHROTTLED = "training-operator", "Trainer", "Trainer, unthrottled"
ROUNDS = {100: 5, 1000: 5, 3000: 1}
"""Of each number of objects."""
ONCE = 1000
"""Number of objects from which on the peers as shipped run once."""
ALONE = 3000
"""Number of objects with which only the limit and ours run."""
WARM_UP = 10
SETTLE, IDLE = 15.0, 30.0
CHANGES = 100
FOREIGN = 5000
MEGABYTE = 1e6

Contestant = Callable[[Plane], AbstractContextManager[tuple[Kind, list[int]]]]


@dataclass(frozen=True)
class Standing:
    """What the operator takes while its trainings run and nothing happens."""

    memory: int
    """Resident bytes."""
    idle: float
    """Share of a core."""
    changes: list[float]
    """Seconds from an edit until the status knows it."""
    foreign: int
    """Bytes more with so many pods of others."""


@contextmanager
def plane() -> Iterator[Plane]:
    """Give a control plane that has just been started."""
    with tempfile.TemporaryDirectory(prefix="arctic-reconcile-") as folder, Plane(Path(folder) / "run", PLAN) as it:
        ours.install(it)
        yield it


@contextmanager
def operator(it: Plane) -> Iterator[tuple[Kind, list[int]]]:
    """Run our operator."""
    with ours.operator(it) as pids:
        yield ours.OURS, pids


def warm_up() -> dict[str, Any]:
    """Return the status of a training that runs."""
    with plane() as it, operator(it) as (kind, pids):
        asyncio.run(race(it, kind, WARM_UP, pids))
        return asyncio.run(ours.first_status(it))


def limit(status: dict[str, Any], writes: int) -> Contestant:
    """Return the client that only writes."""

    @contextmanager
    def contestant(_: Plane) -> Iterator[tuple[Kind, list[int]]]:
        yield ours.Limit(status, writes).kind, [os.getpid()]

    return contestant


def run(contestant: Contestant, count: int, at_once: int = AT_ONCE) -> Run:
    """Let a contestant run on a control plane of its own."""
    with plane() as it, contestant(it) as (kind, pids):
        return asyncio.run(race(it, kind, count, pids, at_once))


def run_ours(count: int) -> tuple[Run, int]:
    """Let ours run; return how often it wrote the status of each object, too."""
    with plane() as it, operator(it) as (kind, pids):
        return asyncio.run(race(it, kind, count, pids)), _writes(count)


def _writes(count: int) -> int:
    """Return the writes of an object's status, rounded down, which is to the limit's advantage."""
    return int(ours.metric("arctic_operator_status_writes_total") / count)


def stand(count: int) -> Standing:
    """Let ours run, and look at it when all is quiet."""
    with plane() as it, operator(it) as (kind, [pid]):
        asyncio.run(race(it, kind, count, [pid]))
        time.sleep(SETTLE)
        before = cpu_seconds(pid)
        time.sleep(IDLE)
        idle = (cpu_seconds(pid) - before) / IDLE
        memory = resident(pid)
        changes = asyncio.run(ours.change_seconds(it, count, CHANGES))
        quiet = resident(pid)
        asyncio.run(ours.make_foreign(it, FOREIGN))
        return Standing(memory, idle, changes, resident(pid) - quiet)


class Measured:
    """All runs, by number of objects and contestant."""

    def __init__(self) -> None:
        self.runs: dict[int, dict[str, list[Run]]] = {}
        self.standing: Standing | None = None

    def add(self, count: int, name: str, one: Run) -> None:
        """Keep one run."""
        self.runs.setdefault(count, {}).setdefault(name, []).append(one)
        note(
            f"{count} objects, {name}: {one.rate:.2f}/s, p99 {one.quantile(0.99):.1f} s, "
            f"{one.cpu / count * 1000:.0f} ms of processor each, {one.busy:.0%} busy"
        )

    def ratios(self, count: int, name: str) -> list[float]:
        """Return how many times as fast as another ours was, round by round."""
        by_name = self.runs[count]
        pairs = zip(by_name[OURS], by_name.get(name, []), strict=False)
        return [mine.rate / other.rate for mine, other in pairs]

    def worst(self, name: str) -> float:
        """Return that ratio's median at the number of objects where it is the least."""
        return min(median(ratios) for count in self.runs if (ratios := self.ratios(count, name)))

    def print(self) -> None:
        """Print a table for each number of objects."""
        for count, by_name in self.runs.items():
            print_table(
                f"{count:,} objects of two pods each",
                ("", "objects/s", "p50 s", "p99 s", "CPU ms an object", "MB", "busy", "ours is x"),
                [
                    (
                        name,
                        spread([one.rate for one in runs]),
                        spread([one.quantile(0.5) for one in runs]),
                        spread([one.quantile(0.99) for one in runs]),
                        f"{median(one.cpu / count * 1000 for one in runs):.0f}",
                        f"{median(one.memory / MEGABYTE for one in runs):.0f}",
                        f"{median(one.busy for one in runs):.0%}",
                        spread(self.ratios(count, name)),
                    )
                    for name, runs in by_name.items()
                ],
            )


def measure(counts: dict[int, int]) -> Measured:
    """Let all take turns, so many rounds with each number of objects."""
    status = warm_up()
    others: dict[str, Contestant] = {
        KUBEFLOW: peers.training_operator,
        TRAINER: peers.trainer(raised=False),
        UNTHROTTLED: peers.trainer(raised=True),
    }
    measured = Measured()
    for count, rounds in counts.items():
        for number in range(rounds):
            note(f"round {number + 1} of {rounds} with {count} objects")
            mine, writes = run_ours(count)
            client = limit(status, writes)
            measured.add(count, OURS, mine)
            measured.add(count, LIMIT, run(client, count))
            for name, contestant in others.items() if count < ALONE else ():
                if number == 0 or count < ONCE or name == UNTHROTTLED:
                    measured.add(count, name, run(contestant, count))
            if number == 0 and count < ALONE:
                measured.add(count, WIDER, run(client, count, 2 * AT_ONCE))
    note(f"{writes} status writes an object; now ours alone, and quiet")
    measured.standing = stand(max(counts))
    return measured


def main() -> None:
    """Measure, print."""
    told = arguments(__doc__, "100 objects only")
    build()
    peers.build()
    binaries.controller("kwok")
    enter_own_network(PLAN)
    wait_for_quiet()
    measured = measure({100: ROUNDS[100]} if told.quick else ROUNDS)
    measured.print()
    standing = measured.standing
    assert standing is not None
    print_table(
        f"The operator with {max(measured.runs):,} trainings, nothing happening",
        ("MB", "share of a core", "edit to status p50 s", "p99 s", f"MB more with {FOREIGN:,} pods of others"),
        [
            (
                f"{standing.memory / MEGABYTE:.0f}",
                f"{standing.idle:.4f}",
                f"{quantile(standing.changes, 0.5):.3f}",
                f"{quantile(standing.changes, 0.99):.3f}",
                f"{standing.foreign / MEGABYTE:.1f}",
            )
        ],
    )
    finish(
        told,
        {
            "of_limit": measured.worst(LIMIT),
            "vs_kubeflow_shipped": measured.worst(KUBEFLOW),
            "vs_trainer_v2_unthrottled": measured.worst(UNTHROTTLED),
            "rss_mb": standing.memory / MEGABYTE,
            "idle_core_share": standing.idle,
            "change_to_status_p99_s": quantile(standing.changes, 0.99),
        },
        less_is_better=("rss_mb", "idle_core_share", "change_to_status_p99_s"),
    )


if __name__ == "__main__":
    main()
