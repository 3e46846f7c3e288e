"""What a connection bears of a request's head, over a real socket."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from arctic_workers.inference.http.connection import MOST_HEAD_BYTES, Connection

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def length(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(f"{len(body)}")(scope, receive, send)


@asynccontextmanager
async def connected() -> AsyncIterator[Ends]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(length, http=Connection, log_config=None, lifespan="off", ws="none")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        try:
            yield reader, writer
        finally:
            writer.close()
            server.should_exit = True
            await serving


async def in_parts(writer: asyncio.StreamWriter, data: bytes, size: int) -> None:
    for begin in range(0, len(data), size):
        writer.write(data[begin : begin + size])
        await writer.drain()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("begin", "part"),
    [(b"GET /", b"x" * 4096), (b"GET / HTTP/1.1\r\nX: ", b"x" * 4096), (b"GET / HTTP/1.1\r\n", b"X: y\r\n" * 700)],
    ids=["line", "value", "headers"],
)
async def test_a_head_that_goes_on_for_ever_is_refused(begin: bytes, part: bytes) -> None:
    async with connected() as (reader, writer):
        answer = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        writer.write(begin)
        for _ in range(2 * MOST_HEAD_BYTES // len(part)):
            writer.write(part)
            await asyncio.sleep(0.01)  # who writes on to what is closed may lose the answer
            if answer.done():
                break
        assert answer.done(), "it is read on and on"
        assert answer.result().startswith(b"HTTP/1.1 400 ")


async def test_a_head_in_small_parts_and_a_large_body_are_read() -> None:
    head = b"POST / HTTP/1.1\r\nHost: here\r\nX-Long: " + b"x" * (MOST_HEAD_BYTES - 1024)
    body = b"y" * (3 * MOST_HEAD_BYTES)
    whole = head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with connected() as (reader, writer):
        for _ in range(2):
            await in_parts(writer, whole, 1000)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(len(f"{len(body)}")) == b"%d" % len(body)
