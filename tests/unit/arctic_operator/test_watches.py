"""Watches of children over HTTP, whatever the API server does meanwhile."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client

from arctic_operator import cluster as module
from arctic_operator import watches
from arctic_operator.cluster import Cluster, client_of
from arctic_operator.watches import Watches, watched

LONG = "x" * 300_000
"""More than a reader takes for a line, by itself."""
Event = tuple[str, int]


def pod(version: int, **fields: Any) -> dict[str, Any]:
    return {"metadata": {"name": f"p{version}", "namespace": "team", "resourceVersion": str(version)}, **fields}


class Server:
    """An API server that keeps pods by their versions, and tells each event once.

    Args:
        listed: versions of the pods that a list shows.
        events: kinds and versions of what a watch tells after that. `CUT` breaks the connection off, `LAST` ends the
            answer in order, `FORGOTTEN` says that the version is too old. What begins as HTML or JSON is told as it is.
    """

    def __init__(self, listed: list[int], events: list[Event]) -> None:
        self.listed, self.events = listed, events
        self.lists = 0
        self.queries: list[dict[str, str]] = []
        self.asked = asyncio.Semaphore(0)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        if "watch" not in query:
            return self.page(query)
        self.queries.append(query)
        self.asked.release()
        stream = web.StreamResponse()
        await stream.prepare(request)
        since = int(query["resourceVersion"])
        for kind, version in list(self.events):
            if version <= since:
                continue
            self.events.remove((kind, version))
            if kind == "CUT":
                request.transport.close()  # once all is sent, and in the midst of an answer
                return stream
            if kind.startswith(("<", "{")):
                await stream.write(kind.encode() + b"\n")
                return stream
            if kind == "FORGOTTEN":
                told = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}
            else:
                told = {"type": kind, "object": {"kind": "Pod"} | pod(version, spec={"nodeName": LONG})}
            await stream.write(json.dumps(told).encode() + b"\n")
            if kind in ("FORGOTTEN", "LAST"):
                return stream
        await asyncio.sleep(3600)
        return stream

    def page(self, query: dict[str, str]) -> web.Response:
        """Pages of one pod each."""
        first = int(query.get("continue", 0))
        self.lists += first == 0
        left = {"continue": str(first + 1)} if first + 1 < len(self.listed) else {}
        items = [pod(self.listed[first])] if self.listed else []
        return web.json_response({"metadata": {"resourceVersion": "100", **left}, "items": items})


@asynccontextmanager
async def watching(server: Server, *kinds: str) -> AsyncIterator[asyncio.Queue[tuple[str, str, int]]]:
    """Watch until the end of the block; yields what was shown."""
    app = web.Application()
    app.router.add_route("GET", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    shown: asyncio.Queue[tuple[str, str, int]] = asyncio.Queue()

    def see(event: str, manifest: dict[str, Any]) -> None:
        shown.put_nowait((event, manifest["kind"], int(manifest["metadata"]["resourceVersion"])))

    configuration = client.Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    async with client_of(configuration) as api:
        task = asyncio.create_task(Watches(Cluster(api), kinds or ("Pod",), (), see).run())
        try:
            yield shown
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await runner.cleanup()


async def told(shown: asyncio.Queue[tuple[str, str, int]], count: int) -> list[tuple[str, str, int]]:
    async with asyncio.timeout(20):
        return [await shown.get() for _ in range(count)]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "EndlessBackoff", lambda: iter(lambda: 0.01, None))


async def test_what_there_is_comes_page_by_page_and_then_what_happens_however_long():
    server = Server([3, 7, 9], [("ADDED", 101), ("BOOKMARK", 150), ("DELETED", 160)])
    async with watching(server) as shown:
        assert await told(shown, 5) == [
            *(("", "Pod", version) for version in (3, 7, 9)),
            ("ADDED", "Pod", 101),
            ("DELETED", "Pod", 160),
        ]
    assert server.lists == 1
    [query] = server.queries
    assert (query["resourceVersion"], query["labelSelector"]) == ("100", "arctic.dev/managed=true")
    assert 240 <= int(query["timeoutSeconds"]) <= 300


@pytest.mark.parametrize(("how", "known"), [("CUT", "101"), ("LAST", "140")])
async def test_a_watch_that_ends_goes_on_where_it_was(how, known):
    server = Server([], [("ADDED", 101), (how, 140), ("MODIFIED", 200)])
    async with watching(server) as shown:
        *_, last = await told(shown, 2 if how == "CUT" else 3)
    assert last == ("MODIFIED", "Pod", 200)
    assert (server.lists, [query["resourceVersion"] for query in server.queries]) == (1, ["100", known])


@pytest.mark.parametrize("told_instead", ["<html>maintenance</html>", '{"message": "maintenance"}'])
async def test_what_a_proxy_tells_in_the_api_servers_stead_ends_a_watch_and_not_the_watching(told_instead):
    server = Server([], [("ADDED", 101), (told_instead, 140), ("MODIFIED", 200)])
    async with watching(server) as shown:
        *_, last = await told(shown, 2)
    assert last == ("MODIFIED", "Pod", 200)
    assert (server.lists, [query["resourceVersion"] for query in server.queries]) == (1, ["100", "101"])


async def test_what_the_api_server_has_forgotten_is_listed_anew():
    server = Server([3], [("FORGOTTEN", 120), ("MODIFIED", 130)])
    async with watching(server) as shown:
        assert await told(shown, 3) == [("", "Pod", 3), ("", "Pod", 3), ("MODIFIED", "Pod", 130)]
    assert server.lists == 2


async def test_what_is_forgotten_is_listed_without_a_wait_unless_it_has_just_been_listed(monkeypatch):
    waits = []
    monkeypatch.setattr(watches, "EndlessBackoff", lambda: iter(lambda: waits.append(1) or 0.01, None))
    server = Server([3], [("LAST", 110), ("FORGOTTEN", 120), ("MODIFIED", 130)])
    async with watching(server) as shown:
        await told(shown, 4)
    ended, server = len(waits), Server([3], [("FORGOTTEN", 110), ("MODIFIED", 130)])
    assert ended == 1  # after LAST alone
    async with watching(server) as shown:
        await told(shown, 3)
    assert len(waits) == ended + 1


async def test_a_connection_that_tells_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(watches, "FOLLOW_SECONDS", (0, 0))
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.2)
    server = Server([], [])
    async with watching(server), asyncio.timeout(20):
        for _ in range(3):
            await server.asked.acquire()
    assert server.lists == 1


async def test_a_server_that_is_away_is_asked_until_it_answers(monkeypatch):
    server, answers = Server([3], []), iter([503, 0, 404])

    async def answer(request: web.Request) -> web.StreamResponse:
        code = next(answers, 200)
        if code == 0:
            request.transport.abort()
        return await Server.answer(server, request) if code == 200 else web.Response(status=code or 500)

    monkeypatch.setattr(server, "answer", answer)
    async with watching(server) as shown:
        assert await told(shown, 1) == [("", "Pod", 3)]


def test_only_what_is_ours_is_watched(build):
    children = ("Job", "StatefulSet", "Deployment", "ControllerRevision", "Pod")
    beside = ("Service", "NetworkPolicy", "PodDisruptionBudget", "Lease")
    assert watched(build.settings) == (*children, *beside)
    assert "Node" in watched(build.settings.model_copy(update={"read_nodes": True}))
    assert "LeaderWorkerSet" in watched(build.lws_settings)
    selectors = {kind: module.selector_of(kind) for kind in watched(build.lws_settings)}
    assert selectors.pop("ControllerRevision") == "arctic.dev/managed=true,arctic.dev/role=history"
    assert set(selectors.values()) == {"arctic.dev/managed=true"}
