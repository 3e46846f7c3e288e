"""Requests from when they are asked to when their last token is taken."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from arctic_workers.inference.engine import EngineError, Output
from arctic_workers.inference.open_requests import OpenRequests


async def some(count: int, *, fails: bool = False) -> AsyncGenerator[Output, None]:
    for token in range(count):
        await asyncio.sleep(0)
        yield Output(token)
    if fails:
        raise EngineError("it broke")


async def test_an_answer_is_made_and_timed_however_late_it_is_read() -> None:
    requests = OpenRequests()
    async with aclosing(requests.answer(some(5))) as outputs:
        read = [await anext(outputs)]
        assert (requests.count, requests.unmade) == (1, 1)
        async with asyncio.timeout(10):
            while requests.unmade:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)
        assert requests.count == 1
        made = time.monotonic()
        read += [output async for output in outputs]
        assert read == [Output(token) for token in range(5)]
        times = [output.made for output in read if output.made is not None]
        assert times == sorted(times)
        assert len(times) == 5
        assert times[-1] <= made
    assert requests.count == 0
    await requests.none()


async def test_an_answer_that_fails_does_so_for_its_reader_after_what_was_made() -> None:
    requests = OpenRequests()
    outputs = requests.answer(some(3, fails=True))
    assert [(await anext(outputs)).token for _ in range(3)] == [0, 1, 2]
    with pytest.raises(EngineError, match="it broke"):
        await anext(outputs)
    assert (requests.count, requests.unmade) == (0, 0)


@pytest.mark.parametrize("taken", [0, 1])
async def test_an_answer_that_is_closed_is_made_no_further(taken: int) -> None:
    requests, closed = OpenRequests(), asyncio.Event()

    async def endless() -> AsyncGenerator[Output, None]:
        try:
            while True:
                yield Output(1)
                await asyncio.sleep(0)
        finally:
            closed.set()

    async def read() -> None:
        async with aclosing(requests.answer(endless())) as outputs:
            for _ in range(taken):
                await anext(outputs)
            await asyncio.sleep(0)

    await read()
    assert closed.is_set() is bool(taken)
    assert (requests.count, requests.unmade) == (0, 0)
