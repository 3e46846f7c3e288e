"""Asking gateways how many requests wait in them, over real sockets."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from arctic_api.world import Label
from arctic_operator import gateways
from arctic_operator.cache import Cache
from arctic_operator.gateways import Gateways
from arctic_operator.manifests.gateway import WAITING_PATH
from arctic_operator.observe import Observer

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


@pytest.mark.parametrize(("gone", "asked"), [({}, True), ({"phase": "Failed"}, False), ({"phase": "Succeeded"}, False)])
def test_a_gateway_that_has_ended_is_not_asked_at_the_address_that_it_had(build, gone, asked):
    """The cluster keeps a pod that was evicted, and may give its address to another."""
    inference, cache = build.inference(), Cache()
    labels = {Label.UID.value: inference.identity.uid, Label.ROLE.value: "gateway"}
    for name, status in {"first": {"phase": "Running"}, "second": {"phase": "Running"} | gone}.items():
        metadata = {"namespace": "team", "name": name, "uid": name, "resourceVersion": "1", "labels": labels}
        metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
        status |= {"podIP": f"10.0.0.{len(name)}"}
        cache.put({"kind": "Pod", "metadata": metadata, "spec": {"containers": []}, "status": status})
    seen = Observer(None, cache, read_nodes=False).inference_seen(inference, lambda _: None, {})
    assert ("second" in {pod.name for pod in seen.gateways}) == asked
    assert "first" in {pod.name for pod in seen.gateways}
