"""What the kernel says of the memory of this container, in either version of cgroups."""

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
