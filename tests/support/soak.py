"""Seeded traffic as a service sees it: good requests of every form, bad ones, and clients that leave or read slowly.

What must hold: every good request is answered with what was asked for, greedy and seeded answers never depend on the
company that they were computed in, every bad request is refused in the form of OpenAI, and nothing stays in the cache.
"""

import asyncio
import json
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from groups import Served

CLIENTS = 12  # more than the group of the tests takes at once
PROMPTS = ["x", "The operator plans what should be.", "Each pod is told everything", "Größe, 世界"]
HUGE = 10_000_000
"""Bytes of a prompt that no server should have to keep."""
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def bad_requests(model: str) -> list[tuple[int, bytes]]:
    """Return requests for completions that are refused, each with its status."""
    asked: list[tuple[int, Any]] = [
        (400, []),
        (400, {"model": model}),
        (404, {"model": "other", "prompt": "x"}),
        (400, {"model": model, "prompt": []}),
        (400, {"model": model, "prompt": "x" * 4000}),
        (400, {"model": model, "prompt": [999_999]}),
        (400, {"model": model, "prompt": "x", "max_tokens": -1}),
        (400, {"model": model, "prompt": "x", "temperature": "warm"}),
        (400, {"model": model, "prompt": "x", "wings": 2}),
        (400, {"model": model, "prompt": "x", "top_k": 2**63}),
        (400, {"model": model, "prompt": "x" * 3_000_000}),
    ]
    rubbish = [b"", b"{", b"\xff\xfe\x00", b"[" * 10_000]
    return [*((400, body) for body in rubbish), *((status, json.dumps(body).encode()) for status, body in asked)]


@dataclass
class Soaked:
    """What came of the traffic."""

    requests: int = 0
    answered: int = 0
    busy: int = 0
    """Answers 429: the client tried again."""
    left: int = 0
    failed_wellformed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """Greedy and seeded answers that were not what the same question got before."""
    wrongly_refused: list[str] = field(default_factory=list)
    cache_left: float = 0.0
    """Share of the cache in use once all is done."""

    def figures(self) -> dict[str, float]:
        """Return the figures alone."""
        return {key: len(value) if isinstance(value, list) else value for key, value in vars(self).items()}


@dataclass(frozen=True)
class Told:
    """An answer, whole or put together from its stream."""

    texts: list[str]
    """Of its choices, in their order."""
    logprobs: list[int]
    """Tokens of each choice whose logprob was told."""
    unfinished: int
    """Choices that end without a reason."""
    tokens: int
    """Generated, as the answer counts them."""


class Soak:
    """Some clients, each with its own seeded traffic, against one group."""

    def __init__(self, group: Served, seed: int, model: str = "tiny") -> None:
        self._group, self._model = group, model
        self._soaked = Soaked()
        self._answers: dict[str, list[str]] = {}
        self._bad_requests = bad_requests(model)
        self._huge = json.dumps({"model": model, "prompt": "x" * HUGE}).encode()
        self._draws = [random.Random(f"{seed} {client}") for client in range(CLIENTS)]

    async def run(self, requests: int) -> Soaked:
        """Send so many requests, and return what has come of all until now."""
        shares = [requests // CLIENTS + (client < requests % CLIENTS) for client in range(CLIENTS)]
        return await self._run([range(share) for share in shares])

    async def run_for(self, seconds: float) -> Soaked:
        """The same with as many requests as are answered in that time."""
        end = time.monotonic() + seconds

        def turns() -> Iterator[None]:
            while time.monotonic() < end:
                yield

        return await self._run([turns() for _ in range(CLIENTS)])

    async def _run(self, turns: list[Iterable[object]]) -> Soaked:
        await asyncio.gather(*map(self._client, self._draws, turns))
        await self._group.until_idle()
        self._soaked.cache_left = await self._group.metric("kv_cache_utilization")
        return self._soaked

    async def _client(self, draw: random.Random, turns: Iterable[object]) -> None:
        kinds: dict[Callable[[httpx.AsyncClient, random.Random], Awaitable[None]], int] = {
            self._whole: 4,
            self._stream: 4,
            self._chat: 3,
            self._read_slowly: 1,
            self._bad: 2,
            self._send_too_much: 1,
            self._leave: 2,
        }
        async with self._connect() as http:
            for _ in turns:
                self._soaked.requests += 1
                [kind] = draw.choices(list(kinds), weights=list(kinds.values()))
                await kind(http, draw)

    def _connect(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self._group.url, timeout=120, trust_env=False, **options)

    # --- good requests

    async def _whole(self, http: httpx.AsyncClient, draw: random.Random) -> None:
        await self._ask(http, COMPLETIONS, self._completion(draw))

    async def _stream(self, http: httpx.AsyncClient, draw: random.Random) -> None:
        await self._ask(http, COMPLETIONS, self._completion(draw), streams=True)

    async def _chat(self, http: httpx.AsyncClient, draw: random.Random) -> None:
        asked = self._asked(draw) | {"messages": [{"role": "user", "content": draw.choice(PROMPTS)}]}
        if draw.random() < 0.3:
            asked |= {"logprobs": True, "top_logprobs": 2}
        await self._ask(http, CHAT, asked, streams=draw.random() < 0.5)

    async def _read_slowly(self, http: httpx.AsyncClient, draw: random.Random) -> None:
        """On a connection that takes little at a time, so that the server has to keep what it writes."""
        small = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)]
        async with self._connect(transport=httpx.AsyncHTTPTransport(socket_options=small)) as own:
            asked = self._completion(draw) | {"n": 2, "logprobs": 5}
            await self._ask(own, COMPLETIONS, asked, streams=draw.random() < 0.7, pause=draw.uniform(0, 0.1))

    def _completion(self, draw: random.Random) -> dict[str, Any]:
        prompt: str | list[str] = draw.choice(PROMPTS)
        if draw.random() < 0.2:
            prompt = draw.sample(PROMPTS, 2)
        logprobs = {"logprobs": 2} if draw.random() < 0.3 else {}
        return self._asked(draw) | {"prompt": prompt} | logprobs

    def _asked(self, draw: random.Random) -> dict[str, Any]:
        asked: dict[str, Any] = {"model": self._model, "max_tokens": draw.choice([1, 4, 16, 48])}
        if draw.random() < 0.2:
            asked["n"] = 2
        if draw.random() < 0.5:
            return asked | {"temperature": 0}
        return asked | {
            "temperature": draw.choice([0.3, 1.0]),
            "top_p": draw.choice([0.5, 1.0]),
            "seed": draw.randrange(9),
        }

    async def _ask(
        self, http: httpx.AsyncClient, path: str, asked: dict[str, Any], *, streams: bool = False, pause: float = 0.0
    ) -> None:
        """Ask until there is room, and judge the answer; `pause` is the time between two reads of it."""
        content = asked | ({"stream": True, "stream_options": {"include_usage": True}} if streams else {})
        try:
            status, text = await self._insist(http, path, content, pause)
            if status != 200:
                raise ValueError(f"{status} {text}")
            self._judge(asked, (_told_by_stream if streams else _told)(text))
        except (httpx.HTTPError, ValueError, LookupError) as error:
            self._soaked.failed_wellformed.append(f"{content}: {error!r}")

    async def _insist(
        self, http: httpx.AsyncClient, path: str, content: dict[str, Any], pause: float
    ) -> tuple[int, str]:
        while True:
            async with http.stream("POST", path, json=content) as answer:
                pieces = []
                async for piece in answer.aiter_raw():
                    pieces.append(piece)
                    await asyncio.sleep(pause)
            if answer.status_code != 429:
                return answer.status_code, b"".join(pieces).decode()
            self._soaked.busy += 1
            await asyncio.sleep(0.1)

    def _judge(self, asked: dict[str, Any], told: Told) -> None:
        prompts = asked.get("prompt")
        choices = asked.get("n", 1) * (len(prompts) if isinstance(prompts, list) else 1)
        if len(told.texts) != choices or told.unfinished:
            raise ValueError(
                f"{choices} choices were asked for, these came, {told.unfinished} unfinished: {told.texts}"
            )
        if not choices <= told.tokens <= choices * asked["max_tokens"]:
            raise ValueError(f"{told.tokens} tokens")
        # A chat tells nothing of the token that ends it.
        unseen = choices if "messages" in asked else 0
        if "logprobs" in asked and not told.tokens - unseen <= sum(told.logprobs) <= told.tokens:
            raise ValueError(f"{told.tokens} tokens, and logprobs of {told.logprobs}")
        self._soaked.answered += 1
        # Seeded and greedy answers are the question's alone, streamed or not.
        question = json.dumps(asked, sort_keys=True)
        if self._answers.setdefault(question, told.texts) != told.texts:
            self._soaked.changed.append(f"{asked}: {told.texts!r} after {self._answers[question]!r}")

    # --- bad requests, and clients that leave

    async def _bad(self, http: httpx.AsyncClient, draw: random.Random) -> None:
        status, content = draw.choice(self._bad_requests)
        await self._be_refused(http, status, content)

    async def _send_too_much(self, http: httpx.AsyncClient, draw: random.Random) -> None:
        await self._be_refused(http, 413, self._huge)

    async def _be_refused(self, http: httpx.AsyncClient, status: int, content: bytes) -> None:
        shown = f"{content[:80]!r}"
        try:
            answer = await http.post(COMPLETIONS, content=content)
        except httpx.HTTPError as error:
            self._soaked.wrongly_refused.append(f"{shown}: {error!r}")
            return
        if answer.status_code == 429:
            self._soaked.busy += 1
        elif answer.status_code != status or " " not in answer.json()["error"]["message"]:
            self._soaked.wrongly_refused.append(f"{shown}: {answer.status_code} {answer.text}")

    async def _leave(self, http: httpx.AsyncClient, draw: random.Random) -> None:
        asked = {"model": self._model, "prompt": draw.choice(PROMPTS), "max_tokens": 150, "stream": draw.random() < 0.5}
        patience = httpx.Timeout(120, read=draw.uniform(0.01, 0.3))
        try:
            async with http.stream("POST", COMPLETIONS, json=asked, timeout=patience) as answer:
                async for _ in answer.aiter_raw():
                    if draw.random() < 0.3:
                        break
        except httpx.ReadTimeout:
            pass
        self._soaked.left += 1


def _told(text: str) -> Told:
    answer = json.loads(text)
    return _put_together(answer["choices"], answer["usage"]["completion_tokens"])


def _told_by_stream(text: str) -> Told:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    if lines[-1] != "[DONE]":
        raise ValueError(f"the stream broke off after {lines[-1]}")
    events = [json.loads(line) for line in lines[:-1]]
    choices = [choice for event in events for choice in event["choices"]]
    return _put_together(choices, events[-1]["usage"]["completion_tokens"])


def _put_together(parts: list[dict[str, Any]], tokens: int) -> Told:
    """Return the answer whose choices are these, each whole or in parts, of a completion or of a chat."""
    count = 1 + max(part["index"] for part in parts)
    texts, logprobs, finished = [""] * count, [0] * count, [False] * count
    for part in parts:
        index, told = part["index"], part.get("logprobs") or {}
        texts[index] += part["text"] if "text" in part else (part.get("message") or part["delta"]).get("content") or ""
        logprobs[index] += len(told.get("tokens") or told.get("content") or ())
        finished[index] |= part["finish_reason"] is not None
    return Told(texts, logprobs, finished.count(False), tokens)
