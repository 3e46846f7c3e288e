"""The compiled code, if this machine has it: the structures that it is called with, and its functions."""

import ctypes
import logging
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

from arctic_workers.inference.engines.native.kernel.sources import digest

log = logging.getLogger(__name__)

AVX512_BF16, AVX512, AVX2 = LIBRARIES = tuple(
    Path(__file__).parent / f"libkernel_{name}.so" for name in ("avx512_bf16", "avx512", "avx2")
)
"""Built with the distribution (`scripts/build_hook.py`), the fastest first; their results are the same, to the bit, but
for rows in bf16, which the first alone can multiply."""

CPU_BYTES = 1024
"""Of a set of CPUs, as interface.h has it."""

PARTS = (
    "norms",
    "projections",
    "placing and routing",
    "attention and experts in",
    "attention and experts out",
    "residual in",
    "residual out",
    "logits",
)
"""Of a step, as kernel.cpp has them."""

_BUILD_ANEW = "`$(scripts/bootstrap.sh) sync --frozen --reinstall-package arctic-kubernetes` builds it anew"


class Matrix(Structure):
    """See interface.h, as of all structures here."""

    _fields_ = [
        ("data", c_void_p),
        ("scale", c_void_p),
        ("format", c_int32),
        ("outputs", c_int32),
        ("inputs", c_int32),
        ("first", c_int32),
        ("block", c_int32),
        ("subnormals", c_void_p),
    ]


class LayerWeights(Structure):
    """A tensor rank's part of the weights of one layer, and the layer's part of the cache."""

    _fields_ = [
        *((f"{name}_norm", c_void_p) for name in ("input", "post", "residual")),
        *((name, Matrix) for name in ("q", "k", "v", "o", "residual_w1", "residual_w3", "residual_w2", "gate")),
        *((name, POINTER(Matrix)) for name in ("w1", "w3", "w2")),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
    ]


class Ends(Structure):
    """What is before the layers and behind them."""

    _fields_ = [
        ("embedding", Matrix),
        ("norm", c_void_p),
        ("head", POINTER(Matrix)),
        ("frequencies", c_void_p),
        ("magnitude", c_double),
    ]


class Shape(Structure):
    """The sizes of a rank."""

    _fields_ = [
        *(
            (name, c_int32)
            for name in (
                "hidden",
                "intermediate",
                "heads",
                "groups",
                "head_size",
                "experts",
                "chosen",
                "layers",
                "cache_format",
                "block_size",
                "threads",
                "tensor",
                "rounds",
            )
        ),
        ("eps", c_float),
        *((name, c_int64) for name in ("slots", "window", "sinks")),
    ]


class Step(Structure):
    """The rows of a step; a span is five integers."""

    _fields_ = [("rows", c_int64), ("count", c_int64), ("spans", c_void_p), ("tables", c_void_p), ("tokens", c_void_p)]


TARGETS = ("q", "k", "v", "o", "w1", "w3", "w2")
"""What adapters stand on, as additions.h has it."""


class Addition(Structure):
    """What an adapter adds to one matrix."""

    _fields_ = [("down", c_void_p), ("up", c_void_p), ("rank", c_int32), ("inputs", c_int32)]


class LayerAdditions(Structure):
    """An adapter's part in one layer."""

    _fields_ = [("of", Addition * len(TARGETS))]


STRUCTURES = (Matrix, LayerWeights, Ends, Shape, Step, LayerAdditions)
"""In the order of `arctic_sizes`."""


@cache
def library() -> ctypes.CDLL | None:
    """Return the fastest compiled code for this processor, or None where there is none."""
    built = [path for path in LIBRARIES if path.is_file()]
    if not built:
        log.warning("The native engine's compiled code is not there (no C++ compiler at the set-up?): torch is slower")
        return None
    code = next(filter(None, map(load, built)), None)
    if code is None:
        log.warning("This processor lacks AVX2 or FMA, which the native engine's compiled code needs: torch is slower")
    return code


def multiplies_bf16() -> bool:
    """Whether there is code that multiplies rows in bf16, and this processor runs it."""
    code = library()
    return code is not None and bool(code.arctic_rounds())


def load(path: Path) -> ctypes.CDLL | None:
    """Return the code of a file, or None where this processor can't run it.

    RuntimeError if it is of other sources, or of another machine.
    """
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeError(f"{path} cannot be loaded on this machine ({error}); {_BUILD_ANEW}") from None
    _check_sources(path, loaded)
    if not loaded.arctic_supported():
        return None
    loaded.arctic_mark_subnormals.argtypes = [c_void_p, c_int64, c_int64, c_void_p]
    loaded.arctic_mark_subnormals.restype = None
    loaded.arctic_rank.argtypes = [POINTER(Shape), POINTER(LayerWeights), POINTER(Ends), c_char_p]
    loaded.arctic_rank.restype = c_void_p
    loaded.arctic_rounds.argtypes = []
    loaded.arctic_rounds.restype = c_int
    loaded.arctic_adapt.argtypes = [c_void_p, POINTER(LayerAdditions), c_int64]
    loaded.arctic_adapt.restype = None
    loaded.arctic_seconds.argtypes = [c_void_p]
    loaded.arctic_seconds.restype = POINTER(c_double)
    loaded.arctic_free.argtypes = [c_void_p]
    loaded.arctic_free.restype = None
    loaded.arctic_run.argtypes = [c_void_p, POINTER(Step), c_void_p]
    loaded.arctic_run.restype = c_int
    loaded.arctic_logits.argtypes = [c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_void_p]
    loaded.arctic_logits.restype = c_int
    return loaded


def _check_sources(path: Path, loaded: ctypes.CDLL) -> None:
    """What was built before a structure, or the order of a panel, changed would read and write anything anywhere."""
    named = getattr(loaded, "arctic_sources", None)
    if named is not None:
        named.restype = c_char_p
    if named is None or named() != digest().encode():
        raise RuntimeError(f"{path} was built from other sources than those beside it; {_BUILD_ANEW}")
