"""Processes of the host: starting them detached, knowing them again, stopping them.

A pid alone says nothing after a reboot or a wrap-around; pid and start time together name one process.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Joins the cgroups named before `--`, then becomes the program: pid and start time stay the shell's. What containerd
# makes is the root of containers, whose user must get in, whatever the umask of whoever starts it.
_JOIN = 'umask 022 && cd / && while [ "$1" != -- ]; do echo $$ >"$1" || exit 1; shift; done; shift; exec "$@"'
_PROC = Path("/proc")


@dataclass(frozen=True)
class Identity:
    """One process: its pid, and its start time in clock ticks since boot (field 22 of /proc/PID/stat)."""

    pid: int
    started: int


def parse_stat(stat: str) -> tuple[str, int]:
    """State letter and start time from the text of /proc/PID/stat; the command in it may hold spaces and brackets."""
    fields = stat[stat.rindex(")") + 1 :].split()
    return fields[0], int(fields[19])


def identify(pid: int) -> Identity | None:
    """The identity of the running process `pid`; None when there is none or only a zombie."""
    try:
        state, started = parse_stat((_PROC / str(pid) / "stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else Identity(pid, started)


def alive(identity: Identity) -> bool:
    """Whether this very process still runs."""
    return identify(identity.pid) == identity


def spawn(command: Sequence[str], log: Path, cgroups: Iterable[Path], env: Mapping[str, str]) -> Identity:
    """Start `command` in a session and the cgroups of its own, its output appended to `log`, and return at once."""
    joins = [str(cgroup / "cgroup.procs") for cgroup in cgroups]
    pid = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", _JOIN, "sh", *joins, "--", *command],
        dict(env),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    return identify(pid) or Identity(pid, -1)


def kill(processes: Iterable[Identity]) -> None:
    """Kill those of `processes` that still run, and wait until they are gone."""
    victims = [process for process in processes if alive(process)]
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(map(alive, victims)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for victim in victims:
        # Only the process that started it can reap it.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(victim.pid, os.WNOHANG)
