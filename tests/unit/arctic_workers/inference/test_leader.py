"""A leader by itself, over an engine that computes nothing: how it ends."""

import asyncio
import json
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines import Scripted
from groups import until

from arctic_api.world import InferenceGroup
from arctic_workers.inference import leader
from arctic_workers.inference.engine import Output, Request
from arctic_workers.inference.http.text import Text
from arctic_workers.inference.leader import Leader
from arctic_workers.inference.pod import Pod

MakeGroup = Callable[..., list[InferenceGroup]]
BODY = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 1}).encode()


class Held(Scripted):
    """Answers once it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        async for output in super().generate(request):
            await self.go.wait()
            yield output


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Pods take signals over."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cut off when the server ends is cut off at once."""
    monkeypatch.setattr(leader, "LINGER", 0.1)
    monkeypatch.setattr(leader, "LAST_ANSWERS", 0.0)


@pytest.fixture
def lead(
    make_group: MakeGroup, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Pod, Leader, list[Any]]]:
    """Makes a leader; the list is what it tells the operator."""

    def make(engine: Scripted, **spec: object) -> tuple[Pod, Leader, list[Any]]:
        [world] = make_group(1, **spec)
        pod, told = Pod(world, 0), []
        monkeypatch.setattr(pod, "publish", lambda phase, state: told.append(state))
        return pod, Leader(pod, engine, Text(model_folder), 300), told

    return make


@asynccontextmanager
async def half_sent(pod: Pod) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Send the first half of a request that the leader then waits for."""
    reader, writer = await asyncio.open_connection("127.0.0.1", pod.group.ports.http)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: tiny\r\nContent-Length: {len(BODY)}\r\n\r\n"
    writer.write(head.encode() + BODY[:10])

    async def begun() -> bool:
        return pod.registry.get_sample_value("arctic_inference_requests_waiting") == 1

    await until(begun)
    yield reader, writer
    writer.close()
    await writer.wait_closed()


async def test_a_leader_that_stops_waits_for_requests_that_are_not_in_its_engine_yet(lead: Any) -> None:
    engine = Held()
    pod, leading, told = lead(engine)
    running = asyncio.create_task(leading.run())
    await until(lambda: listens(pod))
    async with half_sent(pod) as (reader, writer):
        pod.stop.request()
        await until(lambda: turns_away(pod))
        assert told[-1].draining
        assert told[-1].running + told[-1].waiting == 1, "the operator deletes what has none"
        ended, _ = await asyncio.wait([running], timeout=1)
        assert not ended
        writer.write(BODY[10:])
        await until(lambda: asked(engine))
        engine.go.set()
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 "), answer
    await running


async def test_a_leader_that_stops_waits_no_longer_than_it_may(lead: Any) -> None:
    pod, leading, _ = lead(Held(), rollout={"drainTimeout": "1s"})
    running = asyncio.create_task(leading.run())
    await until(lambda: listens(pod))
    async with half_sent(pod) as (reader, _):
        pod.stop.request()
        await running
        assert not (await reader.read()).startswith(b"HTTP/1.1 200 ")


async def test_no_part_of_an_answer_waits_until_the_one_before_has_been_acknowledged(lead: Any) -> None:
    """Else each one takes 40 ms on a connection that is kept."""
    pod, leading, _ = lead(Held(), rollout={"drainTimeout": "1s"})
    running = asyncio.create_task(leading.run())
    await until(lambda: listens(pod))
    async with half_sent(pod):
        [connection] = leading._server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        pod.stop.request()
        await running


async def asked(engine: Scripted) -> bool:
    return bool(engine.asked)


async def listens(pod: Pod) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", pod.group.ports.http)
    except ConnectionRefusedError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def turns_away(pod: Pod) -> bool:
    """Whether a new connection is."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{pod.group.ports.http}") as client:
        return (await client.get("/v1/models")).status_code == 503
