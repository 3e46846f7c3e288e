"""The C++ that benchmarks bring, compiled when it is asked for and kept in the cache."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from arctic_cluster import paths
from arctic_workers.inference.engines.native.kernel.arena import Arena

FLAGS = ("-std=c++20", "-O3", "-mavx2", "-mfma", "-pthread", "-Wall", "-Wextra", "-Werror")
HERE = Path(__file__).parent


def compiled(source: str, *flags: str) -> Path:
    """Return the program or library that a file of this folder becomes."""
    path = HERE / source
    recipe = path.read_bytes() + repr(flags).encode()
    made = paths.cache() / "benchmarks" / f"{path.stem}-{hashlib.sha256(recipe).hexdigest()[:12]}"
    if not made.exists():
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
        if compiler is None:
            sys.exit("a C++ compiler is needed: apt-get install --no-install-recommends g++")
        made.parent.mkdir(parents=True, exist_ok=True)
        beside = made.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, *FLAGS, *flags, "-o", beside, path], check=True)
        beside.replace(made)
    return made


class ReadCeiling:
    """Measures what all cores together read of memory; holds 256 MiB, in huge pages where the system has them.

    With small ones a stream waits for the page table every 4 KiB, and what the engine reads would pass this ceiling.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._buffer = Arena().take(256 << 20).view(torch.float32).fill_(1)  # more than the caches hold
        self._code = ctypes.CDLL(str(compiled("read_ceiling.cpp", "-shared", "-fPIC")))
        self._code.read_ceiling.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int]
        self._code.read_ceiling.restype = ctypes.c_double

    def measure(self) -> float:
        """Return bytes a second."""
        return float(self._code.read_ceiling(self._buffer.data_ptr(), self._buffer.numel(), self._threads, 5))
