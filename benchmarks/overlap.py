"""How much of the experts' exchange a step hides: ours, ours without overlap, DeepSpeed's `MoE` and AutoEP.

Two ranks, a core each, in two network namespaces joined by a link of a set rate, train the same Arctic of 104M
parameters (four layers of 128 experts, of which each rank holds half) on 8192 tokens a rank and step, with ZeRO-2.
Routing is dropless and every expert is wanted alike, so that all systems send the same bytes: they are counted. They
take their steps in alternation, ours in the number of chunks that was fastest when each was tried, as a training tries
them. All-to-all is what a step without overlap waits for its exchanges; what is hidden of it is what a step with
overlap doesn't wait. The half rate is the one at which all-to-all is half of the step without overlap. The ideal is the
schedule's own: its pieces of work, as the processor's clock had them, and a link that carries one exchange after the
other at the rate that a lone transfer had. What ZeRO's reduction takes is timed apart. Where it is over a tenth
of a step on a shaped link, or the systems' bytes differ by over 2%, nothing is told: they could not be compared.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from arctic_cluster.errors import ClusterError
from benchmarks.drawing import Chart
from benchmarks.form import Told, arguments, draw, finish, note, print_table, spread, wait_for_quiet
from benchmarks.links import ADDRESSES, DEVICE, Link, link
from benchmarks.overlap_ideal import Ideal, events_of, ideal

IN_PLACE = "in place"
OURS, AUTOEP, DEEPSPEED = "ours", "autoep", "deepspeed"
SYSTEMS: dict[str, dict[str, Any]] = {
    OURS: {"step": OURS},
    IN_PLACE: {"step": OURS, "in_place": True, "chunks": 1},
    AUTOEP: {"step": AUTOEP},
    DEEPSPEED: {"step": DEEPSPEED},
}
MEGABITS = (100, 400, 1000)
"""Rates of the link beside the half rate and the unshaped link."""
_TRANSFER = 8 << 20
"""Bytes of the lone transfer by which the rate of the link is measured: those of one exchange of a layer."""
_PORT = 29500
KINDS = {
    "counts": ("counts", False),
    "dispatch": ("dispatch", False),
    "combine": ("combine", False),
    "combine, backward": ("combine", True),
    "dispatch, backward": ("dispatch", True),
}
MOST_ZERO = 0.1
"""Share of a step below which ZeRO's reduction has to stay on a shaped link, which it shares."""
MOST_APART = 0.02
"""Share by which the bytes of two systems may differ, with what retransmissions and the kernel's headers add."""
HIDEABLE = 0.95
"""Share of all-to-all that the ideal hides where the windows are said to be able to hide it."""


class Rate(NamedTuple):
    """What the link is shaped to."""

    name: str
    megabits: float | None

    @property
    def words(self) -> str | None:
        """In tc's words; None is unshaped."""
        return None if self.megabits is None else f"{self.megabits:.0f}mbit"


@dataclass
class Taken:
    """What was measured at one rate: rank 0's answers by system."""

    bytes_per_second: float
    """Of a lone transfer."""
    chunks: int
    """In which ours was fastest."""
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def median(self, system: str, name: str = "seconds") -> float:
        """Return the median of a field."""
        values: list[float] = [answer[name] for answer in self.answers[system]]
        return statistics.median(values)

    @property
    def all_to_all(self) -> float:
        """Seconds of the step without overlap that are waiting for exchanges."""
        return self.median(IN_PLACE, "waited")

    @property
    def share(self) -> float:
        """Share of these in that step."""
        return self.all_to_all / self.median(IN_PLACE)

    @property
    def hidden(self) -> float:
        """Share of all-to-all that a step with overlap doesn't wait for."""
        return 1.0 - self.median(OURS, "waited") / self.all_to_all

    def by_kind(self, kind: str, backward: bool) -> str:
        """Show seconds waited for and in flight, of all layers in the last round."""
        parts = [p for p in self.answers[OURS][-1]["parts"] if (p["kind"], p["backward"]) == (kind, backward)]
        return " of ".join(f"{sum(part[name] for part in parts):.2f}" for name in ("exposed", "in_flight"))

    def ideal(self) -> Ideal:
        """The schedule's own, of the median round; ZeRO's reduction is no part of the schedule."""
        plans = [ideal(events_of(answer["events"]), self.bytes_per_second) for answer in self.answers[OURS]]
        zero = self.median(OURS, "zero")
        return Ideal(statistics.median(plan.step for plan in plans) + zero, statistics.median(p.waited for p in plans))

    @property
    def zero_share(self) -> float:
        """Share of a step of ours that is ZeRO's reduction, which has the same link."""
        return self.median(OURS, "zero") / self.median(OURS)

    @property
    def bytes_apart(self) -> float:
        """By what share the system that sends most sends more than the one that sends least."""
        sent = [self.median(system, "sent") for system in SYSTEMS]
        return max(sent) / min(sent) - 1

    @property
    def hideable(self) -> float:
        """Share of all-to-all that the ideal hides."""
        return 1.0 - self.ideal().waited / self.all_to_all


class Pair:
    """Two running ranks."""

    def __init__(self, processes: Sequence["subprocess.Popen[str]"]) -> None:
        self._processes = processes

    def ask(self, **order: Any) -> dict[str, Any]:
        """Have both ranks do something; returns rank 0's answer."""
        for process in self._processes:
            assert process.stdin is not None
            print(json.dumps(order), file=process.stdin, flush=True)
        answers: list[dict[str, Any]] = []
        for process in self._processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                sys.exit("a rank has ended: see above")
            answers.append(json.loads(line))
        return answers[0]

    def transfer(self) -> float:
        """Return bytes a second each way of a transfer with nothing beside it; the median of three."""
        seconds: list[float] = [self.ask(transfer=_TRANSFER)["seconds"] for _ in range(3)]
        return _TRANSFER / statistics.median(seconds)


@contextmanager
def pair(joined: Link, cores: Sequence[int]) -> Iterator[Pair]:
    """Start a rank in each namespace, on a core of its own, and end them."""
    processes = [_start(rank, enter, core) for rank, (enter, core) in enumerate(zip(joined.inside, cores, strict=True))]
    try:
        yield Pair(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start(rank: int, enter: Sequence[str], core: int) -> "subprocess.Popen[str]":
    told = {
        "RANK": str(rank),
        "WORLD_SIZE": str(len(ADDRESSES)),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": ADDRESSES[0],
        "MASTER_PORT": str(_PORT),
        "GLOO_SOCKET_IFNAME": DEVICE,
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    return subprocess.Popen(
        [*enter, "taskset", "-c", str(core), sys.executable, "-m", "benchmarks.overlap_rank"],
        env=os.environ | told,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def take(joined: Link, ranks: Pair, rate: Rate, rounds: int) -> Taken:
    """Let all systems take a step a round at one rate."""
    joined.shape(rate.words)
    taken = Taken(ranks.transfer(), fastest_chunks(ranks))
    for number in range(rounds):
        for system, order in SYSTEMS.items():
            answer = ranks.ask(**({"chunks": taken.chunks} | order))
            taken.answers.setdefault(system, []).append(answer)
            note(f"{rate.name}, round {number + 1} of {rounds}: {system} {answer['seconds']:.2f} s")
    return taken


def fastest_chunks(ranks: Pair) -> int:
    """Try the numbers of chunks as a training does in its first steps, once each."""
    numbers: list[int] = ranks.ask(chunks_to_try=True)["chunks"]
    return min(numbers, key=lambda number: float(ranks.ask(step=OURS, chunks=number)["seconds"]))


def half_rate(joined: Link, ranks: Pair) -> Rate:
    """Find the rate at which all-to-all is half of the step without overlap: it takes as long as all else."""
    joined.shape(None)
    answer = ranks.ask(**SYSTEMS[IN_PLACE])
    sent = answer["sent"]
    megabits = 8e-6 * sent / (answer["seconds"] - answer["waited"])
    for _ in range(2):
        joined.shape(f"{megabits:.0f}mbit")
        answer = ranks.ask(**SYSTEMS[IN_PLACE])
        megabits *= answer["waited"] / (answer["seconds"] - answer["waited"])
    return Rate(f"half rate, {megabits:.0f} Mbit/s", megabits)


def main() -> None:
    """Print the tables and the figures."""
    told = arguments(__doc__, "the half rate and the unshaped link, one round")
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        sys.exit("two cores are needed: one for each rank")
    wait_for_quiet()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # so that the namespaces go too
    try:
        with link() as joined, pair(joined, cores) as ranks:
            for order in SYSTEMS.values():
                ranks.ask(**order)  # the first time, memory is still to be given out
            taken = sweep(joined, ranks, told)
    except ClusterError as error:
        sys.exit(f"the link takes root, ip and tc: {error}")
    report(told, taken)


def sweep(joined: Link, ranks: Pair, told: Told) -> dict[Rate, Taken]:
    """Measure at each rate, the half rate first."""
    half = half_rate(joined, ranks)
    others = [] if told.quick else [Rate(f"{megabits} Mbit/s", megabits) for megabits in MEGABITS]
    rates = [half, *others, Rate("unshaped", None)]
    return {rate: take(joined, ranks, rate, 1 if told.quick or rate is not half else 3) for rate in rates}


def unfair(taken: Mapping[Rate, Taken]) -> Iterator[str]:
    """Yield why systems can't be compared at a rate."""
    for rate, it in taken.items():
        if it.bytes_apart > MOST_APART:
            yield f"{rate.name}: systems send {it.bytes_apart:.1%} apart, at most {MOST_APART:.0%} is the same work"
        if rate.megabits is not None and it.zero_share > MOST_ZERO:
            yield f"{rate.name}: ZeRO's reduction is {it.zero_share:.1%} of a step, at most {MOST_ZERO:.0%} may be"


def report(told: Told, taken: dict[Rate, Taken]) -> None:
    """Print the tables, draw the figure, and finish."""
    ordered = sorted(taken.items(), key=lambda item: item[0].megabits or float("inf"))
    print_table(
        "Seconds of a step, and all-to-all in the one without overlap",
        ("link", *SYSTEMS, "chunks", "all-to-all", "share", "ZeRO", "MB sent", "ideal", "step / ideal"),
        [
            (
                rate.name,
                *(spread([answer["seconds"] for answer in it.answers[system]]) for system in SYSTEMS),
                it.chunks,
                f"{it.all_to_all:.2f}",
                f"{it.share:.0%}",
                f"{it.zero_share:.1%}",
                spread([it.median(system, "sent") / 1e6 for system in SYSTEMS]),
                f"{it.ideal().step:.2f}",
                f"{it.median(OURS) / it.ideal().step:.3f}",
            )
            for rate, it in ordered
        ],
    )
    print_table(
        "What is hidden of all-to-all, and how much faster a step is: than without overlap, and than others by what",
        ("link", "hidden", "ideal hides", "overlap gains", "vs AutoEP", "dispatch", "vs DeepSpeed", "dispatch"),
        [
            (
                rate.name,
                f"{it.hidden:.0%}",
                f"{it.hideable:.0%}",
                f"{_speedup(it, IN_PLACE):.2f}",
                *(
                    f"{value:.2f}"
                    for other in (AUTOEP, DEEPSPEED)
                    for value in (_speedup(it, other), it.median(other) / it.median(IN_PLACE))
                ),
            )
            for rate, it in ordered
        ],
    )
    print_table(
        "Seconds that a step waits for exchanges of each kind, and that they are in flight",
        ("link", *KINDS),
        [(rate.name, *(it.by_kind(*kind) for kind in KINDS.values())) for rate, it in ordered],
    )
    if sentences := list(unfair(taken)):
        sys.exit("\n".join(sentences))
    [half] = [it for rate, it in taken.items() if rate.name.startswith("half")]
    shaped = [(rate.megabits, it) for rate, it in ordered if rate.megabits is not None]
    if not told.quick:
        lines = {system: [(float(megabits), it.median(system)) for megabits, it in shaped] for system in SYSTEMS}
        draw(told, Chart("A step by the rate of the link", "Mbit/s", "seconds", lines), "overlap")
    able = [it for _, it in shaped if it.hideable >= HIDEABLE] or [half]
    finish(
        told,
        {
            "hidden_share": min(it.hidden for it in able),
            "speedup_vs_deepspeed": _speedup(half, DEEPSPEED),
            "speedup_vs_autoep": _speedup(half, AUTOEP),
            "speedup_vs_no_overlap": _speedup(half, IN_PLACE),
            "step_over_ideal": half.median(OURS) / half.ideal().step,
            "zero_share": max(it.zero_share for _, it in shaped),
        },
        less_is_better={"step_over_ideal", "zero_share"},
    )


def _speedup(taken: Taken, other: str) -> float:
    return taken.median(other) / taken.median(OURS)


if __name__ == "__main__":
    main()
