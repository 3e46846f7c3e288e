"""How many cores this process has under the limits of its container."""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Cores that this process may use: its affinity, or its container's quota rounded up, if that is less."""
    affinity = len(os.sched_getaffinity(0))
    quota = _cgroup_quota(CGROUPS)
    return affinity if quota is None else max(1, min(affinity, -(-quota[0] // quota[1])))


def has_a_quota() -> bool:
    """Whether this process' container has a limit on CPU: then others do not compute with the same cores unasked."""
    return _cgroup_quota(CGROUPS) is not None


def _cgroup_quota(root: Path) -> tuple[int, int] | None:
    """Microseconds of CPU in a period of so many, version 2 or 1; None without a quota."""
    if (both := root / "cpu.max").exists():
        quota, period = both.read_text(encoding="ascii").split()
        return None if quota == "max" else (int(quota), int(period))
    if (file := root / "cpu/cpu.cfs_quota_us").exists():
        microseconds = int(file.read_text(encoding="ascii"))
        period_file = root / "cpu/cpu.cfs_period_us"
        return None if microseconds < 0 else (microseconds, int(period_file.read_text(encoding="ascii")))
    return None
