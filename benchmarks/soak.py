"""Half an hour of good, bad, broken-off and slow clients at one group: is all answered, and does nothing stay behind?

A dozen clients ask a small random Arctic over HTTP, in a process of its own: in streams and whole, for several answers,
with logprobs, of several prompts, in chats. Others send rubbish and bodies of 10 MB, leave in the middle of an answer,
or read it slowly. Greedy and seeded answers have to be the same ones each time. Memory and open handles are compared
between a warm-up, a tenth of the time, and the end, both while nobody is there.
"""

import asyncio
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

from groups import Group
from models import write_plain_model
from soak import Soak, Soaked

from benchmarks.form import arguments, finish, note, print_table
from benchmarks.native import group_of
from benchmarks.processes import handles, resident

SECONDS, QUICK = 1800.0, 60.0
WARM_UP = 0.1
"""Share of the time."""
PARTS = 9
"""Looks at the process after the warm-up."""
SETTLE = 3.0
"""Seconds in which a server closes what its clients have closed, and looks after its blocks."""
SPEC = {"attention": {"maxLength": 256}, "batching": {"maxSequences": 8, "tokenBudget": 64, "prefixCaching": True}}


@dataclass(frozen=True)
class Look:
    """At the server, while nobody is there."""

    requests: int
    memory: int
    """Resident bytes."""
    handles: int


async def soak(group: Group, seconds: float) -> tuple[Soaked, list[Look]]:
    """Send traffic for so long; return what came of it, and the looks from the warm-up's end on."""
    traffic, looks = Soak(group, seed=1, model=group.worlds[0].served_name), []
    for part in [WARM_UP, *[(1 - WARM_UP) / PARTS] * PARTS]:
        soaked = await traffic.run_for(part * seconds)
        await asyncio.sleep(SETTLE)
        looks.append(_look(group, soaked))
        note(f"{looks[-1].requests} requests, {looks[-1].memory / 2**20:.1f} MiB, {looks[-1].handles} handles")
    return soaked, looks


def _look(group: Group, soaked: Soaked) -> Look:
    [process] = group.processes
    return Look(soaked.requests, resident(process.pid), handles(process.pid))


async def measure(seconds: float) -> tuple[Soaked, list[Look], float]:
    """Start a server and soak it; the last are the blocks that it has lost."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        group = Group(group_of(write_plain_model(scratch / "tiny"), scratch, **SPEC))
        try:
            group.wait_until_ready()
            soaked, looks = await soak(group, seconds)
            return soaked, looks, await group.metric("lost_blocks")
        finally:
            group.end()


def main() -> None:
    """Soak, print."""
    told = arguments(__doc__, f"{QUICK:.0f} seconds instead of {SECONDS:.0f}")
    seconds = QUICK if told.quick else SECONDS
    soaked, looks, lost = asyncio.run(measure(seconds))
    for fault in (*soaked.failed_wellformed, *soaked.changed, *soaked.wrongly_refused):
        note(fault)
    first, last = looks[0], looks[-1]
    print_table(
        f"{soaked.requests:,} requests in {seconds:.0f} s",
        ("answered", "left", "told to wait", "failed", "changed", "wrongly refused"),
        [(
            soaked.answered, soaked.left, soaked.busy,
            len(soaked.failed_wellformed), len(soaked.changed), len(soaked.wrongly_refused),
        )],
    )  # fmt: skip
    print_table(
        "The server while nobody is there",
        ("", "after the warm-up", "at the end"),
        (
            ("resident memory, MiB", f"{first.memory / 2**20:.1f}", f"{last.memory / 2**20:.1f}"),
            ("open handles", first.handles, last.handles),
        ),
    )
    finish(
        told,
        {
            "requests": soaked.requests,
            "failed_wellformed": len(soaked.failed_wellformed) + len(soaked.changed),
            "wrongly_refused": len(soaked.wrongly_refused),
            # A share of the cache that is still in use counts as one block.
            "leaked_blocks": int(lost) + math.ceil(soaked.cache_left),
            "rss_growth": last.memory / first.memory,
            "handles": last.handles - first.handles,
        },
        less_is_better=("failed_wellformed", "wrongly_refused", "leaked_blocks", "rss_growth", "handles"),
        unjudged=("requests",),
    )


if __name__ == "__main__":
    main()
