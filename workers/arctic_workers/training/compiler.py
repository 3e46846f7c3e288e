"""Torch's compiler in a rank: on a GPU for regions alone, on a CPU not at all, as importing it is most of a start."""

import importlib
import inspect
import logging
import os
import shutil
import sysconfig
from pathlib import Path

import torch
from torch.optim import Adam, AdamW, Optimizer

from arctic_model.regions import compile_on

log = logging.getLogger(__name__)

MOST_COMPILED = 32
"""Times that a region may be compiled: with gradients and without, for the first sizes that it meets and for all."""


def builds_kernels() -> bool:
    """Whether Triton can build here what starts its kernels: in C, against Python's headers."""
    compilers = filter(None, (os.environ.get("CC"), "gcc", "clang"))
    return any(map(shutil.which, compilers)) and Path(sysconfig.get_paths()["include"], "Python.h").exists()


def compile_regions() -> None:
    """Compile the regions of `arctic_model.regions` on GPUs; says so where Triton can't build their kernels."""
    if not builds_kernels():
        log.warning(
            "no C compiler (gcc, clang, or CC), or no Python.h: nothing is compiled for the GPU, and steps take longer"
        )
        return
    dynamo = importlib.import_module("torch._dynamo")
    dynamo.config.recompile_limit = max(MOST_COMPILED, dynamo.config.recompile_limit)
    # Torch 2.13 sees that in this thread alone, and autograd has one of its own for a GPU; there each region is told.
    told = "recompile_limit" in inspect.signature(torch.compile).parameters
    compile_on("cuda", **({"recompile_limit": MOST_COMPILED} if told else {}))


def import_without_compiling(module: str) -> None:
    """Import a module whose functions are compiled as it is imported, without that."""
    compiled = torch.compile
    torch.compile = lambda function=None, **_: function or (lambda given: given)  # type: ignore[assignment]
    try:
        importlib.import_module(module)
    finally:
        torch.compile = compiled


class EagerAdamW(AdamW):
    """Torch's AdamW without what wraps its methods: that imports the compiler, to tell it to leave them alone."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(Adam.step))
