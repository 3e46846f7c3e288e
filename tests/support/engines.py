"""Engines that compute nothing."""

from collections.abc import AsyncGenerator, Sequence

from arctic_workers.inference.engine import Output, Request, SamplingField, Stats


class Scripted:
    """An `Engine` that answers every request with the same outputs, and keeps what it was asked."""

    ready = True
    max_length = 256
    cannot: frozenset[SamplingField] = frozenset()

    def __init__(self, outputs: Sequence[Output] = (Output(2, finish_reason="length"),)) -> None:
        self.outputs = outputs
        self.asked: list[Request] = []

    def problem(self, request: Request) -> str | None:
        return None

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        self.asked.append(request)
        for output in self.outputs:
            yield output

    def stats(self) -> Stats:
        return Stats()

    async def start(self) -> None:
        pass

    async def drain(self) -> None:
        pass

    async def stop(self) -> None:
        pass
