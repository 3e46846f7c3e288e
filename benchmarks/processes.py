"""What the kernel says of a process."""

from pathlib import Path


def resident(process: int | str = "self") -> int:
    """Return the resident memory of a process in bytes."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def handles(process: int) -> int:
    """Return how many files, sockets and the like a process has open."""
    return sum(1 for _ in Path(f"/proc/{process}/fd").iterdir())
