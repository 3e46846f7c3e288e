"""Memory for weights, in huge pages: with small ones a stream of weights waits for the page table every 4 KiB."""

import ctypes
import mmap
from contextlib import suppress

import torch
from torch import Tensor

_ALIGNMENT = 64
_PIECE_BYTES = 64 << 20


class Arena:
    """Gives out memory that is taken back all at once, with the last tensor of it."""

    def __init__(self) -> None:
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def take(self, count: int) -> Tensor:
        """Return so many bytes [count], which begin a cache line."""
        start = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        if start + count > len(self._piece):
            self._piece, start = _map(max(count, _PIECE_BYTES)), 0
        self._used = start + count
        return self._piece[start : self._used]


def release_freed() -> None:
    """Have the C library give freed memory back to the system; it keeps what lies between things that stay."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _map(count: int) -> Tensor:
    memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
