"""The most that the devices of a world could compute: a vendor's word on GPUs, on CPUs a measurement."""

import time
from functools import cache

import torch

from arctic_model.planning.devices import device_named
from arctic_workers.training.engine import Ranks, mean_over_ranks, training_dtype

SIZE = 512
"""Rows and columns of the matrices that a CPU multiplies."""
MEASURED_SECONDS = 0.1


def peak_flops(ranks: Ranks) -> float:
    """Return the FLOPs a second of all devices together in the training's dtype, 0 where nobody knows. Collective.

    A CPU is measured by all ranks at the same time, as they share their machine's cores when they train.
    """
    if ranks.device.type == "cuda":
        device = device_named(torch.cuda.get_device_name(ranks.device))
        own = (device.bf16_flops if device else None) or 0.0
    else:
        own = _measured(training_dtype(ranks.device))
    least_known = mean_over_ranks([own, float(own == 0)], ranks.device)
    return 0.0 if least_known[1] else least_known[0] * ranks.world


@cache
def _measured(dtype: torch.dtype) -> float:
    """Multiply matrices for a tenth of a second, once a process; the best time counts."""
    a, b = torch.ones(SIZE, SIZE, dtype=dtype), torch.ones(SIZE, SIZE, dtype=dtype)
    a @ b
    best, end = float("inf"), time.perf_counter() + MEASURED_SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * SIZE**3 / best
