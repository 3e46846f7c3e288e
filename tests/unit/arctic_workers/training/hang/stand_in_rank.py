"""Behaves as one rank of a world does in some moment, its pulse written by the real thing.

Arguments: folder, rank, what it does, how many collectives it has launched.
"""

import ctypes
import sys
import threading
import time
from pathlib import Path

from arctic_workers.training.hang.pulse import Pulsing

folder, rank, what, launched = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])


def wait_for_what_never_comes() -> None:
    time.sleep(600)


def poll() -> None:
    """Do as the threads of gloo do: wake up, look, and sleep."""
    ctypes.CDLL(None).prctl(15, b"gloo_tcp_loop")
    while True:
        sum(range(20_000))
        time.sleep(0.01)


threading.Thread(target=poll, daemon=True).start()
pulsing = Pulsing(folder, rank, lambda: {"all": launched}, on_cpu=True)
# Of too few steps nobody takes a usual time: one that computes may compute for as long as it likes.
for step in range(2 if what == "computes" else 3):
    with pulsing.step(step, "first"):
        time.sleep(0.01)
with pulsing.step(3, "first"):
    while what == "computes":
        pass
    wait_for_what_never_comes()
