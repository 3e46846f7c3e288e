"""Products of many experts shared out over the threads of a rank, each by one thread.

With all threads in each product, which is small, these wait for one another and fetch from each other's caches.
"""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import NamedTuple

import torch

LEAST = 1 << 25
"""FLOPs of a product from which on it is shared out: below, what Python does for a job takes as long."""


class Job(NamedTuple):
    """What is to be done for one expert, whatever is done for others."""

    flops: int
    """Of each of its products."""
    do: Callable[[], None]


def share_out(jobs: Iterable[Job], device: torch.device) -> None:
    """Do all jobs on a `device`, in no order, those of a CPU on as many threads as torch has on this one.

    Whether a job has all threads or one is a matter of its own size, so that its bits depend on no other. Raises what a
    job raises.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    shared = []
    for job in jobs:
        if threads == 1 or job.flops < LEAST:
            job.do()
        else:
            shared.append(job)
    if not shared:
        return
    left = deque(sorted(shared, key=lambda job: -job.flops))
    others = [_pool(threads - 1).submit(_work, left) for _ in range(min(threads, len(shared)) - 1)]
    torch.set_num_threads(1)  # of this thread, and of those that have not yet begun
    try:
        _work(left)
    finally:
        wait(others)
        torch.set_num_threads(threads)
    for other in others:
        other.result()


@torch.no_grad()
def _work(left: deque[Job]) -> None:
    while left:
        try:
            job = left.popleft()
        except IndexError:  # another thread was faster
            return
        job.do()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "experts", initializer=torch.set_num_threads, initargs=(1,))
