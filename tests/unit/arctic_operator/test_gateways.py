"""Asking gateways how many requests wait in them, over real sockets."""

import asyncio
from contextlib import asynccontextmanager

from aiohttp import web

from arctic_operator import gateways
from arctic_operator.gateways import Gateways
from arctic_operator.manifests.gateway import WAITING_PATH

PATIENCE = 20.0


@asynccontextmanager
async def pod(address, port, answer):
    async def waiting(_):
        return answer()

    app = web.Application()
    app.router.add_get(WAITING_PATH, waiting)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, address, port)
    await site.start()
    yield site._server.sockets[0].getsockname()[1]
    await runner.cleanup()


async def test_what_waits_is_summed_up_and_a_pod_that_does_not_answer_is_not_empty(monkeypatch):
    monkeypatch.setattr(gateways, "ASK_EVERY", 0.01)
    changed, counts, broken = asyncio.Event(), [0, 0], [""]

    def told(key):
        assert key == "service"
        changed.set()

    def second():
        return (
            web.Response(text=broken[0], content_type="application/json")
            if broken[0]
            else web.json_response({"waiting": counts[1]})
        )

    asked = Gateways(told)

    async def until(number):
        async with asyncio.timeout(PATIENCE):
            while asked.waiting("service") != number:  # noqa: ASYNC110 - what is waited for polls itself
                await asyncio.sleep(0.01)

    async with (
        pod("127.0.0.2", 0, lambda: web.json_response({"waiting": counts[0]})) as port,
        pod("127.0.0.3", port, second),
    ):
        assert asked.waiting("service") is None
        asked.ask("service", ["127.0.0.2", "127.0.0.3"], port)
        await until(0)
        assert changed.is_set()
        changed.clear()
        counts[:] = [2, 1]
        await until(3)
        assert changed.is_set()
        for answer in ("busy", '{"waiting": "many"}', '{"waiting": 1e999}'):
            broken[0] = ""
            await until(3)
            broken[0] = answer
            await until(2)
        counts[0] = 0
        await until(None)
        broken[0] = ""
        counts[1] = 0
        await until(0)
        asked.ask("service", [], port)
        assert asked.waiting("service") is None
        await asked.close()
