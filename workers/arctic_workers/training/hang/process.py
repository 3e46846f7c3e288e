"""What the kernel says of a rank's process: whether it is stopped, whether anything in it runs; and its stacks."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from arctic_workers.training.hang.pulse import STACK_SIGNAL

_TICKS = os.sysconf("SC_CLK_TCK")
_DUMP_SECONDS = 3.0
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
    """Look at a process, but for its thread `writer`; None if it is gone."""
    states, cpu = [], {}
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            if int(task.name) != writer:
                state, cpu[int(task.name)] = _stat(task)
                states.append(state)
    except OSError:  # it is gone, or a thread of it is
        return None
    return Vitals(stopped=bool(states) and set(states) <= {"T", "t"}, runnable="R" in states, cpu=cpu)


def _stat(task: Path) -> tuple[str, float]:
    fields = (task / "stat").read_text().rpartition(")")[2].split()  # a name may hold spaces
    return fields[0], (int(fields[11]) + int(fields[12])) / _TICKS


def stacks(pid: int, path: Path) -> str:
    """Let a rank write the stacks of its threads to `path`, and return them; a stopped one goes on for that."""
    try:
        os.kill(pid, STACK_SIGNAL)
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return ""
    deadline, text = time.monotonic() + _DUMP_SECONDS, ""
    while time.monotonic() < deadline:
        time.sleep(0.1)
        before, text = text, path.read_text()
        if text and text == before:
            break
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
