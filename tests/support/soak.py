"""Seeded traffic as a service sees it: good requests of every form, bad ones, and clients that leave.

What must hold: every good request is answered with what was asked for, greedy and seeded answers never depend on the
company that they were computed in, every bad request is refused in the form of OpenAI, and nothing stays in the cache.
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from groups import Served

CLIENTS = 12  # more than the group of the tests takes at once
PROMPTS = ["x", "The operator plans what should be.", "Each pod is told everything", "Größe, 世界"]


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
    ]
    return [(400, b"{"), *((status, json.dumps(body).encode()) for status, body in asked)]


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


class Soak:
    """Some clients, each with its own seeded traffic, against one group that serves the model `tiny`."""

    def __init__(self, group: Served, seed: int) -> None:
        self._group, self._seed = group, seed
        self._soaked = Soaked()
        self._texts: dict[str, str] = {}
        self._bad_requests = bad_requests("tiny")

    async def run(self, requests: int) -> Soaked:
        """Send so many requests, and return what came of them."""
        shares = [requests // CLIENTS + (client < requests % CLIENTS) for client in range(CLIENTS)]
        await asyncio.gather(*[self._client(client, share) for client, share in enumerate(shares)])
        await self._group.until_idle()
        self._soaked.cache_left = await self._group.metric("kv_cache_utilization")
        return self._soaked

    async def _client(self, client: int, requests: int) -> None:
        draw = random.Random(f"{self._seed} {client}")
        kinds: list[Callable[[httpx.AsyncClient, random.Random], Awaitable[None]]] = [
            self._whole,
            self._stream,
            self._chat,
            self._bad,
            self._leave,
        ]
        async with httpx.AsyncClient(base_url=self._group.url, timeout=120, trust_env=False) as http:
            for _ in range(requests):
                self._soaked.requests += 1
                await draw.choices(kinds, weights=[4, 4, 3, 2, 2])[0](http, draw)

    # --- good requests

    async def _whole(self, http: httpx.AsyncClient, draw: random.Random) -> None:
        asked = self._asked(draw) | {"prompt": draw.choice(PROMPTS)}
        answer = await self._insist(http, "/v1/completions", asked)
        if self._is_well(answer, asked):
            content = answer.json()
            self._judge(asked, content["choices"][0]["text"], content["usage"]["completion_tokens"])

    async def _chat(self, http: httpx.AsyncClient, draw: random.Random) -> None:
        asked = self._asked(draw) | {"messages": [{"role": "user", "content": draw.choice(PROMPTS)}]}
        answer = await self._insist(http, "/v1/chat/completions", asked)
        if self._is_well(answer, asked):
            content = answer.json()
            self._judge(asked, content["choices"][0]["message"]["content"], content["usage"]["completion_tokens"])

    async def _stream(self, http: httpx.AsyncClient, draw: random.Random) -> None:
        asked = self._asked(draw) | {"prompt": draw.choice(PROMPTS)}
        streamed = asked | {"stream": True, "stream_options": {"include_usage": True}}
        answer = await self._insist(http, "/v1/completions", streamed)
        if not self._is_well(answer, asked):
            return
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        if lines[-1] != "[DONE]":
            self._soaked.failed_wellformed.append(f"{asked}: the stream broke off after {lines[-1]}")
            return
        events = [json.loads(line) for line in lines[:-1]]
        text = "".join(event["choices"][0]["text"] for event in events if event["choices"])
        self._judge(asked, text, events[-1]["usage"]["completion_tokens"])

    def _asked(self, draw: random.Random) -> dict[str, Any]:
        asked = {"model": "tiny", "max_tokens": draw.choice([1, 4, 16, 48])}
        if draw.random() < 0.5:
            return asked | {"temperature": 0}
        return asked | {
            "temperature": draw.choice([0.3, 1.0]),
            "top_p": draw.choice([0.5, 1.0]),
            "seed": draw.randrange(9),
        }

    async def _insist(self, http: httpx.AsyncClient, path: str, asked: dict[str, Any]) -> httpx.Response:
        """Ask until there is room."""
        while True:
            answer = await http.post(path, json=asked)
            if answer.status_code != 429:
                return answer
            self._soaked.busy += 1
            await asyncio.sleep(0.1)

    def _is_well(self, answer: httpx.Response, asked: dict[str, Any]) -> bool:
        if answer.status_code != 200:
            self._soaked.failed_wellformed.append(f"{asked}: {answer.status_code} {answer.text}")
        return answer.status_code == 200

    def _judge(self, asked: dict[str, Any], text: str, tokens: int) -> None:
        self._soaked.answered += 1
        if not 1 <= tokens <= asked["max_tokens"]:
            self._soaked.failed_wellformed.append(f"{asked}: {tokens} tokens")
        # Seeded and greedy answers are the question's alone, streamed or not.
        question = json.dumps(asked, sort_keys=True)
        if self._texts.setdefault(question, text) != text:
            self._soaked.changed.append(f"{asked}: {text!r} after {self._texts[question]!r}")

    # --- bad requests, and clients that leave

    async def _bad(self, http: httpx.AsyncClient, draw: random.Random) -> None:
        status, content = draw.choice(self._bad_requests)
        answer = await http.post("/v1/completions", content=content)
        if answer.status_code == 429:
            self._soaked.busy += 1
        elif answer.status_code != status or not answer.json()["error"]["message"]:
            self._soaked.wrongly_refused.append(f"{content!r}: {answer.status_code} {answer.text}")

    async def _leave(self, http: httpx.AsyncClient, draw: random.Random) -> None:
        asked = {"model": "tiny", "prompt": draw.choice(PROMPTS), "max_tokens": 150, "stream": draw.random() < 0.5}
        patience = httpx.Timeout(120, read=draw.uniform(0.01, 0.3))
        try:
            async with http.stream("POST", "/v1/completions", json=asked, timeout=patience) as answer:
                async for _ in answer.aiter_raw():
                    if draw.random() < 0.3:
                        break
        except httpx.ReadTimeout:
            pass
        self._soaked.left += 1
