"""What a connection bears of a request's head, and what clients do with connections, over a real socket."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from arctic_workers.inference.http.connection import (
    MOST_HEAD_BYTES,
    MOST_PIPELINED,
    MOST_PIPELINED_BYTES,
    Connection,
)

LONG = 60.0
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def length(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(f"{len(body)}")(scope, receive, send)


@asynccontextmanager
async def connected(app: ASGIApp = length) -> AsyncIterator[Ends]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app, http=Connection, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1
        )
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


GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize("pause", [0.0, 0.2], ids=["at once", "later"])
@pytest.mark.parametrize(
    "more",
    [GET, GET * 1000, POST % 200_000 + b"x" * 200_000, POST % 2**30 + b"x" * (MOST_PIPELINED_BYTES + 1)],
    ids=["one", "many", "large", "endless"],
)
async def test_an_answer_in_the_making_ends_with_its_client_though_more_was_asked(pause: float, more: bytes) -> None:
    begun, told = 0, asyncio.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal begun
        begun += 1
        while (await receive())["type"] != "http.disconnect":
            pass
        told.set()

    async with connected(wait) as (_, writer):
        writer.write(GET)
        await asyncio.sleep(pause)
        writer.write(more)
        await asyncio.sleep(0.2)
        writer.close()
        await asyncio.wait_for(told.wait(), LONG)
    assert begun == 1


async def answers(reader: asyncio.StreamReader) -> list[bytes]:
    """What is answered, until the connection is closed."""
    return (await asyncio.wait_for(reader.read(), LONG)).split(b"HTTP/1.1 ")[1:]


UntilRead = Callable[[int], Awaitable[None]]


@pytest.fixture
def until_read(monkeypatch: pytest.MonkeyPatch) -> UntilRead:
    """Wait until the server has read so many bytes."""
    read, receive = 0, Connection.data_received

    def counted(connection: Connection, data: bytes) -> None:
        nonlocal read
        receive(connection, data)
        read += len(data)

    async def until(count: int) -> None:
        async with asyncio.timeout(LONG):
            while read < count:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)

    monkeypatch.setattr(Connection, "data_received", counted)
    return until


@pytest.mark.parametrize("pause", [0.0, 0.2], ids=["at once", "later"])
async def test_requests_behind_those_that_may_wait_are_not_answered(pause: float, until_read: UntilRead) -> None:
    """A client that finds its connection closed asks again for what was not answered (RFC 9112, 9.3.2)."""
    go = asyncio.Event()

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await length(scope, receive, send)

    async with connected(late) as (reader, writer):
        writer.write(GET)
        await asyncio.sleep(pause)
        writer.write(GET * (2 * MOST_PIPELINED))
        await until_read(len(GET) * (1 + 2 * MOST_PIPELINED))
        go.set()
        *others, last = await answers(reader)
    assert len(others) == MOST_PIPELINED
    assert b"connection: close" in last
    assert not any(b"connection: close" in other for other in others)


async def test_a_request_that_is_too_large_to_wait_is_not_answered(until_read: UntilRead) -> None:
    go = asyncio.Event()

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await length(scope, receive, send)

    async with connected(late) as (reader, writer):
        body = b"x" * (MOST_PIPELINED_BYTES // 2)
        large = POST % len(body) + body
        asked = GET + large + GET + large + large + GET
        await in_parts(writer, asked, 2**16)
        await until_read(len(asked))
        go.set()
        *_, last = told = await answers(reader)
    assert [answer.rpartition(b"\r\n")[2] for answer in told] == [b"0", b"%d" % len(body), b"0", b"%d" % len(body)]
    assert b"connection: close" in last


async def test_what_is_no_request_cuts_off_the_answer_before_it_and_is_not_answered_within_it() -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    async with connected(stream) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        await reader.readuntil(b"begun\r\n")
        writer.write(b"no request\r\n\r\n")
        assert await reader.read() == b""


@pytest.mark.parametrize("pause", [0.0, 0.1], ids=["at once", "later"])
async def test_an_offer_of_another_protocol_is_passed_over(pause: float) -> None:
    """Java's client makes one with its first request."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    head = b"POST / HTTP/1.1\r\nHost: here\r\n" + offer
    asked = [
        (head + b"Content-Length: 5\r\n\r\n", b"hello", b"5"),
        (head + b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n", b"3"),
        (head + b"\r\n", b"", b"0"),
        (b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n", b"ab", b"2"),
    ]
    async with connected() as (reader, writer):
        for begin, body, _ in asked:
            writer.write(begin)
            await asyncio.sleep(pause)
            writer.write(body)
        for _, _, size in asked:
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LONG)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(1) == size


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_an_old_client_gets_no_chunks(method: bytes) -> None:
    """HTTP/1.0 has none (RFC 9112, 6.1); the end of an answer is that of its connection."""

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"some", b"", b"text"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    for app, body in ((stream, b"sometext"), (length, b"0")):
        async with connected(app) as (reader, writer):
            writer.write(method + b" / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            [answer] = await answers(reader)
            head, _, told = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"200 ")
            assert b"connection: close" in head
            assert b"transfer-encoding" not in head
            assert (b"content-length: 1" in head) is (app is length)
            assert told == (body if method == b"GET" else b"")
