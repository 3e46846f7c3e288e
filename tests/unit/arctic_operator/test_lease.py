"""Leading, on an API server in memory; who leads when is tried in tests/cluster."""

import asyncio

import pytest

from arctic_operator.install import Install
from arctic_operator.lease import Lease


class Slow:
    """An API server that keeps a renewal waiting until its test lets it go."""

    def __init__(self) -> None:
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def get(self, *_):
        return None

    async def create(self, manifest):
        if self.asked.is_set():
            await self.answer.wait()
        self.asked.set()
        return manifest

    async def replace(self, manifest):
        return manifest


@pytest.mark.parametrize("steps", range(8))
async def test_leading_ends_when_told_whatever_else_happens_at_that_moment(build, steps):
    server = Slow()
    settings = build.settings.model_copy(update={"lease_renew": "0.01s"})
    lease = Lease(server, settings, Install(server, settings))
    leading = asyncio.create_task(lease.lead(asyncio.Event().wait))
    await server.asked.wait()
    await asyncio.sleep(0.05)
    server.answer.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    leading.cancel()
    done, _ = await asyncio.wait([leading], timeout=5)
    assert leading in done
    assert leading.cancelled()
