"""How much memory this process has under the limits of its container."""

from pathlib import Path

from arctic_workers.control.cores import CGROUPS

_UNLIMITED = 1 << 60


def available_memory() -> int:
    """Bytes that can still be taken: what the machine has, or what the container's limit leaves, if that is less."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    machine = int(fields["MemAvailable"].split()[0]) * 1024
    return min(machine, *(limit - used for limit, used in _cgroup_memory(CGROUPS)), _UNLIMITED)


def _cgroup_memory(root: Path) -> list[tuple[int, int]]:
    """Limit and use of the container's control group, version 2 or 1; a file cache that can go counts as unused."""
    for limit_file, usage_file, statistics, cache_key in (
        (root / "memory.max", root / "memory.current", root / "memory.stat", "inactive_file"),
        (
            root / "memory/memory.limit_in_bytes",
            root / "memory/memory.usage_in_bytes",
            root / "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        if limit_file.exists():
            limit = limit_file.read_text(encoding="ascii").strip()
            if limit == "max":
                return []
            lines = statistics.read_text(encoding="ascii").splitlines()
            cached = next((int(line.split()[1]) for line in lines if line.startswith(f"{cache_key} ")), 0)
            return [(int(limit), int(usage_file.read_text(encoding="ascii")) - cached)]
    return []


def affordable_blocks(available: int, *, fraction: float, block_bytes: int, most: int) -> int:
    """How many blocks of keys and values fit into a share of the memory; at most `most`: more could not be used."""
    return min(int(available * fraction) // block_bytes, most)
