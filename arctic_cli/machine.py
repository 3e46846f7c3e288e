"""This machine as a device for plans: its free memory, and how fast its cores read and multiply, as measured."""

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor

from arctic_model.planning.devices import Device, cpu
from arctic_workers.control.cores import available_cores
from arctic_workers.control.memory import available_memory

_BUFFER_BYTES = 64 << 20
"""Of each of a core's two buffers: more than its share of any cache."""
_ALL_BUFFERS_BYTES = 2 << 30
"""Of all cores together: more than all caches of the largest machine."""
_ROUNDS = 3
_MATRIX = 1536
"""Rows and columns of the matrices that are multiplied: large enough for all cores, done in a tenth of a second."""
_Buffer = ctypes.Array[ctypes.c_char]


def this_machine() -> Device:
    """Return what a worker would find here now."""
    return cpu(
        memory=available_memory(), bandwidth=_read_bandwidth(available_cores()), fp32_flops=_multiplication_rate()
    )


def _multiplication_rate() -> float | None:
    """Return FLOPs a second of a large product in fp32 on all cores, the best of a few; None without a library for it.

    Whoever installs the command alone has no numpy, and nothing that trains.
    """
    try:
        import numpy as np
    except ImportError:
        return None
    factor = np.random.default_rng(0).standard_normal((_MATRIX, _MATRIX), dtype=np.float32)
    rates = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        factor @ factor
        rates.append(2 * _MATRIX**3 / (time.perf_counter() - start))
    return max(rates)


def _read_bandwidth(cores: int) -> float:
    """Return bytes a second that all cores together read; the best of a few rounds of comparing equal buffers."""
    size = min(_BUFFER_BYTES, _ALL_BUFFERS_BYTES // (2 * cores))
    pairs = [(_filled(size), _filled(size)) for _ in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        seconds = min(_seconds(pool, pairs) for _ in range(_ROUNDS))
    return 2 * size * cores / seconds


def _filled(size: int) -> _Buffer:
    # Untouched memory is one page of zeros, which the caches hold.
    buffer = ctypes.create_string_buffer(size)
    ctypes.memset(buffer, 1, size)
    return buffer


def _seconds(pool: ThreadPoolExecutor, pairs: list[tuple[_Buffer, _Buffer]]) -> float:
    compare = ctypes.CDLL(None).memcmp
    compare.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    start = time.perf_counter()
    # A foreign call runs without the interpreter's lock.
    differences = list(pool.map(lambda pair: compare(*pair, len(pair[0])), pairs))
    seconds = time.perf_counter() - start
    assert not any(differences), "the buffers are alike"
    return seconds
