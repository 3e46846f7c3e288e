"""What a GPU has and Triton's interpreter on a CPU has not: a second stream, and graphs of what was started."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def second_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return a stream beside the one that a thread has; None where there are no streams."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


@contextmanager
def beside(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Start what stands in here on another stream: after all that was started before, beside what comes until `join`.

    Memory of one stream that the other uses has to be kept until `join`: then who takes it next comes after both.
    """
    if stream is None:
        yield
        return
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        yield


def join(stream: torch.cuda.Stream | None) -> None:
    """Let what comes now wait, on the device, for all that was started on another stream."""
    if stream is not None:
        torch.cuda.current_stream(stream.device).wait_stream(stream)


class Recorder:
    """Records graphs that share memory: they run one after the other, and nothing is left for the next."""

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def record(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Record what `compute` starts, and return what starts it anew, in one go, and returns the same tensor.

        It has to have run before: what it compiles can't be recorded. Recording waits for the device, and computes
        nothing. Where there are no graphs, this is `compute` itself.
        """
        if self._pool is None:
            return compute
        graph = torch.cuda.CUDAGraph()
        # Other threads may ask the driver for anything meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = compute()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
