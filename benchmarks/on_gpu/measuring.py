"""How long work on a device takes, and how much of a time its kernels fill."""

import os
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch.profiler import DeviceType

SAMPLES = 15
"""Times of which the median is taken, at most."""
LEAST = 0.002
"""Seconds that a sample lasts at least: a call that is shorter is repeated within it."""


def seconds(call: Callable[[], object], device: torch.device, budget: float = 1.0) -> float:
    """Return the median seconds of a call, warm, by the device's own clock; stops after about `budget` seconds.

    Calls within a sample follow each other as the host starts them: where it is slower, its time is counted.
    """
    for _ in range(3):
        call()
    once = _sample(call, device, 1)
    repeats = max(1, round(LEAST / once))
    count = max(1, min(SAMPLES, int(budget / (once * repeats))))
    return statistics.median(_sample(call, device, repeats) for _ in range(count))


def _sample(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    begun.record()
    for _ in range(repeats):
        call()
    ended.record()
    ended.synchronize()
    return float(begun.elapsed_time(ended)) / 1e3 / repeats


def busy_share(spans: Iterable[tuple[float, float]]) -> float:
    """Return which share of the time from the first beginning to the last end the spans fill; they may overlap."""
    ordered = sorted(spans)
    if not ordered:
        return 0.0
    first, filled, reached = ordered[0][0], 0.0, ordered[0][0]
    for begin, end in ordered:
        filled += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return filled / (reached - first) if reached > first else 0.0


def kernels_of(call: Callable[[], object], device: torch.device) -> list[tuple[str, float, float]]:
    """Return name, beginning and end, in microseconds, of what runs on the device in one call; none on a CPU."""
    if device.type != "cuda":
        return []
    # Else a process that was profiled once starts its kernels more slowly from then on (PyTorch's pull request 146604).
    os.environ.setdefault("TEARDOWN_CUPTI", "1")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize(device)
    on_device = [event for event in profile.events() or () if event.device_type == DeviceType.CUDA]
    return [(event.name, event.time_range.start, event.time_range.end) for event in on_device]
