"""Memory for weights, in huge pages: with small ones a stream of weights waits for the page table every 4 KiB."""

import ctypes
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch
from torch import Tensor

from arctic_workers.inference.engines.native.kernel.nodes import ANYWHERE, Cpus

_ALIGNMENT = 64
_PIECE_BYTES = 64 << 20


class Arena:
    """Gives out memory that is taken back all at once, with the last tensor of it."""

    def __init__(self, near: Cpus = ANYWHERE) -> None:
        """Memory is in the node of some CPUs, as long as that has any."""
        self._near = near
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def take(self, count: int) -> Tensor:
        """Return so many bytes [count], which begin a cache line."""
        start = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        if start + count > len(self._piece):
            self._piece, start = _map(max(count, _PIECE_BYTES), self._near), 0
        self._used = start + count
        return self._piece[start : self._used]


def release_freed() -> None:
    """Have the C library give freed memory back to the system; it keeps what lies between things that stay."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _map(count: int, near: Cpus) -> Tensor:
    memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    if near:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(_touch, memory, near).result()
    return torch.frombuffer(memory, dtype=torch.uint8)


def _touch(memory: mmap.mmap, near: Cpus) -> None:
    """Write to each page from one of some CPUs, which binds this thread: Linux then takes it from their node.

    To ask for a node outright (`mbind`) is what the default seccomp profile of containers forbids.
    """
    os.sched_setaffinity(0, near)
    memory[:: mmap.PAGESIZE] = bytes(-(-len(memory) // mmap.PAGESIZE))
