"""Processes that end with the one that started them.

`python -m arctic_workers.control.lifeline PARENT MODULE [ARGUMENT ...]` runs a module that is asked to end (SIGTERM)
once the process PARENT, which starts it, is gone.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)


def die_with_parent(parent: int | None = None, number: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel for a signal when the parent ends: no rank may outlive its pod's world.

    `parent` is who that is, if it is known: it may have ended long before this call.
    """
    parent = parent or os.getppid()
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, number)
    if os.getppid() != parent:
        os._exit(1)  # it ended before the kernel was asked


def command(module: str) -> Sequence[str]:
    """Return the command that runs a module for as long as this process lives.

    Files of the folder in which that was started are no modules of it: people have a tokenize.py there, or a queue.py.
    """
    return (sys.executable, "-P", "-m", __name__, str(os.getpid()), module)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]), signal.SIGTERM)
    os.environ["PYTHONSAFEPATH"] = "1"  # what -P is, also for what the module starts, such as ranks
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])  # noqa: S606  and stays tied
