"""What the kernel says of the memory of this container and machine, in either version of cgroups."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 2**60
"""A limit beyond this is none: version 1 writes a huge number."""
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class Memory:
    """Bytes, and processes killed for want of them since the container began; None for what the kernel doesn't say."""

    most: int | None
    limit: int | None
    kills: int

    @classmethod
    def now(cls, root: Path = CGROUPS) -> "Memory":
        """Read it; outside a container it is the whole machine's, or nothing."""
        one, two = root / "memory", root
        limit = _number(two / "memory.max") or _number(one / "memory.limit_in_bytes")
        return cls(
            most=_number(two / "memory.peak") or _number(one / "memory.max_usage_in_bytes"),
            limit=limit if limit and limit < UNLIMITED else None,
            kills=_kills(two / "memory.events") + _kills(one / "memory.oom_control"),
        )

    def __str__(self) -> str:
        """Return it as the end of a sentence on the container."""
        used = f"used {readable(self.most)} at most" if self.most else "has not said what it used"
        return used + (f", of {readable(self.limit)} that it may" if self.limit else "")


def readable(size: int) -> str:
    """Return bytes with three digits or more and the unit that they have then."""
    amount, unit = float(size), 0
    while amount >= 1000 and unit < len(UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.3g} {UNITS[unit]}" if amount < 1000 else f"{amount:.0f} {UNITS[unit]}"


def _number(path: Path) -> int | None:
    with suppress(OSError, ValueError):  # "max" is no number
        return int(path.read_text())
    return None


def _kills(path: Path) -> int:
    with suppress(OSError, ValueError):
        lines = (line.split() for line in path.read_text().splitlines())
        return next((int(words[1]) for words in lines if words[:1] == ["oom_kill"]), 0)
    return 0


def available_memory() -> int:
    """Bytes that can still be taken: what the machine has, or what the container's limit leaves, if that is less."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    machine = int(fields["MemAvailable"].split()[0]) * 1024
    return min([machine, *(limit - used for limit, used in _left_of_limit(CGROUPS))])


def _left_of_limit(root: Path) -> list[tuple[int, int]]:
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
