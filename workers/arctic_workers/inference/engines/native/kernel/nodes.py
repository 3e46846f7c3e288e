"""Which CPUs are near which memory: NUMA nodes, as Linux tells of them."""

from collections.abc import Set
from pathlib import Path

from arctic_workers.inference.engines.native.kernel.library import CPU_BYTES

NODES = Path("/sys/devices/system/node")
"""Has a folder `nodeN` for each node, and in it `cpulist`."""

Cpus = frozenset[int]
ANYWHERE: Cpus = frozenset()
"""Where a thread runs that is not bound."""


def cpus_of_ranks(tensor: int, threads: int, allowed: Set[int], folder: Path = NODES) -> list[Cpus]:
    """Return where the threads of each tensor rank run, of the CPUs that are allowed.

    Where these are of as many nodes as there are ranks, and each has one for each of a rank's threads, each rank has a
    node; otherwise threads run anywhere.
    """
    near = [cpus & allowed for cpus in _nodes(folder) if cpus & allowed]
    fits = 1 < len(near) == tensor and min(map(len, near)) >= -(-threads // tensor)
    return near if fits else [ANYWHERE] * tensor


def _nodes(folder: Path) -> list[Cpus]:
    """CPUs of each node, in the order of their numbers."""
    numbers = sorted(int(path.name.removeprefix("node")) for path in folder.glob("node[0-9]*"))
    return [_listed((folder / f"node{number}" / "cpulist").read_text(encoding="ascii").strip()) for number in numbers]


def _listed(text: str) -> Cpus:
    """Numbers as Linux lists them: `0-3,8`; nothing for a node without CPUs."""
    ends = [part.split("-") for part in text.split(",") if part]
    return frozenset(cpu for pair in ends for cpu in range(int(pair[0]), int(pair[-1]) + 1))


def bits_of(cpus: Cpus) -> bytes:
    """Return a set of CPUs as the compiled code takes it: a bit each."""
    return sum(1 << cpu for cpu in cpus).to_bytes(CPU_BYTES, "little")
