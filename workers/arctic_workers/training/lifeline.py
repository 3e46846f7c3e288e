"""Processes that end with the one that started them."""

import ctypes
import os
import signal

_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent ends: no rank may outlive its pod's world."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it ended before the kernel was asked
