"""What the kernel says of a rank's process: whether it is stopped, whether anything in it runs; and its stacks."""

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from arctic_workers.training.hang.pulse import STACK_SIGNAL

POLLING = ("gloo_", "pt_nccl", "NCCL ", "pt_tcpstore", "cuda-Evt")
"""What the names of threads begin with that wake up now and then whatever happens: they say nothing of a rank."""
_TICKS = os.sysconf("SC_CLK_TCK")
_DUMP_SECONDS = 3.0
_POLL_SECONDS = 0.02
_SHOWN_FRAMES = 3


@dataclass(frozen=True)
class Vitals:
    """One look at a process."""

    stopped: bool
    """By a signal, or by a debugger."""
    runnable: bool
    """Whether a thread runs, or would if it had a processor."""
    cpu: Mapping[int, float]
    """Seconds of processor time of each thread."""

    def is_alive_since(self, earlier: "Vitals") -> bool:
        """Return whether anything has run since an earlier look."""
        return self.runnable or any(seconds > earlier.cpu.get(thread, 0.0) for thread, seconds in self.cpu.items())


def vitals(pid: int, writer: int) -> Vitals | None:
    """Look at a process, but for its thread `writer` and those that only poll; None if it is gone."""
    states, cpu = [], {}
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            name, state, seconds = _stat(task)
            if int(task.name) != writer and not name.startswith(POLLING):
                cpu[int(task.name)] = seconds
                states.append(state)
    except OSError:  # it is gone, or a thread of it is
        return None
    return Vitals(stopped=bool(states) and set(states) <= {"T", "t"}, runnable="R" in states, cpu=cpu)


def _stat(task: Path) -> tuple[str, str, float]:
    """Return a thread's name, its state, and the seconds of processor time that it has had."""
    named, _, rest = (task / "stat").read_text().rpartition(")")  # a name may hold spaces and brackets
    fields = rest.split()
    return named.partition("(")[2], fields[0], (int(fields[11]) + int(fields[12])) / _TICKS


def stacks(pid: int, path: Path) -> str:
    """Let a rank write the stacks of its threads to `path`, and return them; it is stopped when this returns.

    One that was stopped goes on for that, but no further.
    """
    try:
        os.kill(pid, STACK_SIGNAL)
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return ""
    deadline, text = time.monotonic() + _DUMP_SECONDS, ""
    while time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        before, text = text, path.read_text()
        if text and text == before:
            break
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    return text or _where_in_the_kernel(pid)


def _where_in_the_kernel(pid: int) -> str:
    """Return where a process is that takes no signal."""
    try:
        return f"it takes no signal; in the kernel it waits in {Path(f'/proc/{pid}/wchan').read_text() or '?'}\n"
    except OSError:
        return ""


def frames(text: str) -> str:
    """Return the main thread's innermost frames in the order of calls; it is the last that `faulthandler` writes."""
    lines = text.strip().split("\n\n")[-1].splitlines()
    inner = [line.strip() for line in lines if line.startswith("  File ")][:_SHOWN_FRAMES]
    return " <- ".join(inner) or " ".join(lines[:1])
