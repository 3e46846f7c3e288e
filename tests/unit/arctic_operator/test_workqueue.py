import asyncio

import pytest

from arctic_operator.workqueue import LAST_RETRY, WorkQueue


async def test_a_key_is_queued_once():
    queue = WorkQueue()
    for key in ("a", "b", "a"):
        queue.add(key)
    assert [await queue.get(), await queue.get()] == ["a", "b"]
    assert len(queue) == 0


async def test_a_key_is_worked_on_once_at_a_time_and_comes_again_if_it_was_added_meanwhile():
    queue = WorkQueue()
    queue.add("a")
    await queue.get()
    queue.add("a")
    assert len(queue) == 0
    queue.done("a")
    assert await queue.get() == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_the_earliest_of_several_delays_counts():
    queue = WorkQueue()
    queue.add_after("a", 3600)
    queue.add_after("a", 0.01)
    queue.add_after("a", 1800)
    assert await asyncio.wait_for(queue.get(), 30) == "a"
    queue.done("a")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.05)


async def test_what_becomes_due_at_once_needs_its_delay_no_more():
    queue = WorkQueue()
    queue.add_after("a", 0.02)
    queue.add("a")
    await queue.get()
    queue.done("a")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.1)


async def test_back_off_grows_up_to_a_limit_and_ends_with_success():
    queue = WorkQueue()
    waits = [queue.retry("a") for _ in range(15)]
    assert waits[0] <= 0.5
    assert waits[-1] <= LAST_RETRY
    assert waits[-1] > 100 * waits[0]
    queue.forget("a")
    assert queue.retry("a") <= 0.5


async def test_one_failing_key_does_not_hold_up_the_others():
    queue = WorkQueue()
    queue.retry("bad")
    for number in range(100):
        queue.add(number)
    assert [await queue.get() for _ in range(100)] == list(range(100))


@pytest.mark.parametrize("steps", range(8))
async def test_a_worker_ends_when_told_though_a_key_comes_at_that_moment(steps):
    queue = WorkQueue()
    queue.add_after("later", 3600)

    async def work():
        while True:
            queue.done(await queue.get())

    worker = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    queue.add("now")
    for _ in range(steps):
        await asyncio.sleep(0)
    worker.cancel()
    done, _ = await asyncio.wait([worker], timeout=5)
    assert worker in done


async def test_delays_that_hold_no_more_are_not_kept():
    queue = WorkQueue()
    for _ in range(2000):
        queue.add_after("a", 3600)
        queue.add("a")
        queue.done(await queue.get())
    queue.add_after("a", 0.01)
    queue.add_after("b", 0.02)
    assert len(queue._delayed) < 100
    assert [await queue.get(), await queue.get()] == ["a", "b"]
