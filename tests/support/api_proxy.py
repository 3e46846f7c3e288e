"""A proxy before a cluster's API server: it shows an operator's writes, and refuses, holds and breaks off its calls."""

import asyncio
import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

REASONS = {409: "Conflict", 429: "TooManyRequests", 500: "InternalError"}
NOT_FORWARDED = {
    *("accept-encoding", "content-encoding", "content-length", "transfer-encoding"),  # what is read is unpacked
    *("connection", "host", "keep-alive"),
}
STARTS_WITHIN = 30.0
HELD_SECONDS = 60.0
"""More than any client waits for an answer."""


@dataclass(frozen=True)
class Trouble:
    """What happens to a share of the calls until a moment of the monotonic clock."""

    kind: int | str
    """A status code to refuse with, `hold` (no answer in time), or `lose` (done, and no answer)."""
    share: float
    until: float


class ApiProxy:
    """Forwards what it gets, with the token that it gets it with, so that an operator has its own rights."""

    def __init__(self, server: str, certificate_authority: str, seed: int = 0) -> None:
        self._server, self._authority = server, certificate_authority
        self._random = random.Random(seed)
        self._trouble: Trouble | None = None
        self._watches: set[asyncio.BaseTransport] = set()
        self.url = ""
        self.when_written: Callable[[], None] = lambda: None
        """Called after each write that has changed anything but a Lease, before it is answered."""
        self._versions: dict[str, str] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve on a free port of loopback, in a thread."""
        ready, over = threading.Event(), asyncio.Event()

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            context = ssl.create_default_context(cadata=self._authority)
            connector = aiohttp.TCPConnector(ssl=context, limit=0)
            async with aiohttp.ClientSession(connector=connector) as self._session:
                application = web.Application(client_max_size=2**24)
                application.router.add_route("*", "/{path:.*}", self._forward)
                runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
                await runner.setup()
                site = web.TCPSite(runner, "127.0.0.1", 0)
                await site.start()
                host, port = runner.addresses[0][:2]
                self.url = f"http://{host}:{port}"
                ready.set()
                await over.wait()
                await runner.cleanup()

        thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
        thread.start()
        assert ready.wait(STARTS_WITHIN), "the proxy does not start"
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(over.set)
            thread.join()

    def trouble(self, kind: int | str, share: float, seconds: float) -> None:
        """Let this happen to a share of the calls for some seconds."""
        self._trouble = Trouble(kind, share, time.monotonic() + seconds)

    def drop_watches(self) -> None:
        """Break off all watches."""
        self._loop.call_soon_threadsafe(self._break_off)

    def _break_off(self) -> None:
        for transport in list(self._watches):
            transport.close()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        trouble = self._now(request)
        if isinstance(trouble, int):
            return _refusal(trouble)
        if trouble == "hold":
            await asyncio.sleep(HELD_SECONDS)
        try:
            body = await request.read()
        except ConnectionResetError:  # who asked has gone
            return web.Response(status=400)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in NOT_FORWARDED}
        target = self._server + request.raw_path
        try:
            async with self._session.request(request.method, target, headers=headers, data=body or None) as answer:
                if request.method != "GET" and "/leases" not in request.path and answer.status < 300:
                    await self._note_write(request.path, answer)
                if trouble == "lose":
                    _abort(request)
                return await self._relay(request, answer)
        except aiohttp.ClientError:
            _abort(request)  # as the API server does that is away
            return web.Response(status=502)

    async def _note_write(self, path: str, answer: aiohttp.ClientResponse) -> None:
        """An apply that changes nothing keeps the version."""
        metadata = (await answer.json(content_type=None)).get("metadata", {})
        version = metadata.get("resourceVersion", "")
        if version and self._versions.get(path.removesuffix("/status")) == version:
            return
        self._versions[path.removesuffix("/status")] = version
        self.when_written()

    async def _relay(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        headers = {name: value for name, value in answer.headers.items() if name.lower() not in NOT_FORWARDED}
        response = web.StreamResponse(status=answer.status, headers=headers)
        transport = request.transport
        if transport and request.query.get("watch") in ("true", "1"):
            self._watches.add(transport)
        try:
            await response.prepare(request)
            if request.method == "GET":
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
            else:
                await response.write(await answer.read())
            await response.write_eof()
        except ConnectionResetError:
            pass  # the operator is dead, or its watch was broken off
        finally:
            self._watches.discard(transport)
        return response

    def _now(self, request: web.Request) -> int | str | None:
        """What happens to this call: conflicts happen to writes alone, and Leases have troubles of their own."""
        trouble = self._trouble
        if trouble is None or time.monotonic() > trouble.until or self._random.random() >= trouble.share:
            return None
        if "/leases" in request.path or (trouble.kind == 409 and request.method == "GET"):
            return None
        return trouble.kind


def _abort(request: web.Request) -> None:
    if request.transport:
        request.transport.abort()


def _refusal(code: int) -> web.Response:
    status: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": REASONS[code],
        "code": code,
        "message": "refused by a test",
    }
    headers = {"Retry-After": "1"} if code == 429 else {}
    return web.Response(status=code, text=json.dumps(status), content_type="application/json", headers=headers)
