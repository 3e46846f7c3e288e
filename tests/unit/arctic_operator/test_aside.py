"""A loop beside the first one, in its thread."""

import asyncio
import threading
import time

import pytest

from arctic_operator.aside import Aside, run_in


async def test_it_goes_on_while_the_first_loop_is_busy():
    beats = []

    async def beat():
        while len(beats) < 3:
            beats.append(threading.current_thread().name)
            await asyncio.sleep(0.001)

    async with Aside("lease") as aside:
        running = asyncio.ensure_future(aside.run(beat))
        await asyncio.sleep(0)
        end = time.monotonic() + 60
        while len(beats) < 3 and time.monotonic() < end:
            time.sleep(0.001)  # noqa: ASYNC251 - nothing of this loop runs
        assert beats == ["lease"] * 3
        await running


async def test_what_runs_there_is_returned_or_raised_here():
    async def answer():
        return 42

    async def fail():
        raise ValueError("no")

    async with Aside("aside") as aside:
        assert await aside.run(answer) == 42
        with pytest.raises(ValueError, match="no"):
            await aside.run(fail)


async def test_it_may_run_something_in_the_first_loop_in_turn():
    here = asyncio.get_running_loop()

    async def which():
        return asyncio.get_running_loop()

    async with Aside("aside") as aside:
        assert await aside.run(lambda: run_in(here, which)) is here


async def test_who_is_cancelled_cancels_it_and_waits_for_its_end():
    begun, ended = threading.Event(), []

    async def last():
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            ended.append(True)

    async with Aside("aside") as aside:
        running = asyncio.ensure_future(aside.run(last))
        await asyncio.to_thread(begun.wait, 60)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        assert ended


async def test_what_does_not_let_itself_be_cancelled_is_waited_for():
    begun = threading.Event()

    async def stubborn():
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done all the same"

    async with Aside("aside") as aside:
        running = asyncio.ensure_future(aside.run(stubborn))
        await asyncio.to_thread(begun.wait, 60)
        running.cancel()
        assert await running == "done all the same"
