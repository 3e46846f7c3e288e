"""A steady load on a service from OpenAI's own client, which tries nothing again, and what became of each request.

Requests begin at a fixed pace, whatever becomes of those before. Half are streams, half are not; every tenth is a long
one. All ask the same, greedily, so whoever answers has to say the same. The client is a process of its own: in the
network of a node it asks the address of a Service as a pod does, and its connections are shared out over the gateways.
"""

import asyncio
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import openai

PROMPT = "Each pod is told everything"
TOKENS, LONG_TOKENS = 16, 150
"""Of an answer; all have exactly so many, whatever the model says."""
LONG_EVERY = 10
ENDS_WITHIN = 600.0


@dataclass(frozen=True)
class Asked:
    """One request. Moments are of the monotonic clock, which all processes of a machine share."""

    began: float
    seconds: float
    """Until the whole answer, or the failure."""
    long: bool
    failed: str
    """Why; empty if it was answered."""
    text: str

    @property
    def ended(self) -> float:
        """When the answer was whole, or had failed."""
        return self.began + self.seconds


class SteadyLoad:
    """The client's process.

    Args:
        url: of the API, without `/v1`.
        model: name under which the service knows it.
        file: which it writes, a line a request.
        pace: requests a second.
        timeout: seconds after which a request has failed.
        within: words before the command, such as those that enter a node's network.
    """

    def __init__(
        self, url: str, model: str, file: Path, pace: float, timeout: float = ENDS_WITHIN, within: Sequence[str] = ()
    ) -> None:
        self._file = file
        command = [*within, sys.executable, __file__, f"{url}/v1", model, str(pace), str(timeout)]
        with file.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out)
        self._all: list[Asked] | None = None

    def asked(self) -> list[Asked]:
        """Return the requests that have come to an end."""
        if self._all is not None:
            return self._all
        lines = self._file.read_text().splitlines(keepends=True)
        return [Asked(**json.loads(line)) for line in lines if line.endswith("\n")]

    def pause(self) -> None:
        """Begin no further request."""
        self._process.send_signal(signal.SIGUSR1)

    def resume(self) -> None:
        """Begin requests again."""
        self._process.send_signal(signal.SIGUSR2)

    def end(self) -> None:
        """Begin no further request, and wait for those that are open. The file may go then."""
        self._process.terminate()
        try:
            code = self._process.wait(ENDS_WITHIN)
        finally:
            self._process.kill()
        assert code == 0, f"the client ended with {code}"
        self._all = self.asked()


# --- in the process


class _Client:
    def __init__(self, client: openai.AsyncOpenAI, model: str) -> None:
        self._client, self._model = client, model
        self._open: set[asyncio.Task[None]] = set()
        self.asks, self.ended = asyncio.Event(), asyncio.Event()
        self.asks.set()

    async def ask_on(self, pace: float) -> None:
        """Ask until it is ended."""
        loop = asyncio.get_running_loop()
        due, numbers = loop.time(), itertools.count()
        while not self.ended.is_set():
            if self.asks.is_set():
                self._open.add(task := asyncio.create_task(self._one(next(numbers))))
                task.add_done_callback(self._open.discard)
            due += 1 / pace
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self.ended.wait()
        await asyncio.gather(*self._open)

    async def _one(self, number: int) -> None:
        long, began, failed, text = number % LONG_EVERY == 0, time.monotonic(), "", ""
        tokens = LONG_TOKENS if long else TOKENS
        try:
            # Of the long ones, too, half are streams.
            text = await (self._stream if number // LONG_EVERY % 2 ^ number % 2 else self._whole)(tokens)
        except (openai.OpenAIError, httpx.HTTPError, ValueError) as error:  # streams break with httpx's own
            failed = f"{type(error).__name__}: {error}"
        print(json.dumps(asdict(Asked(began, time.monotonic() - began, long, failed, text))), flush=True)

    async def _whole(self, tokens: int) -> str:
        answer = await self._client.completions.create(
            model=self._model, prompt=PROMPT, max_tokens=tokens, temperature=0, extra_body={"ignore_eos": True}
        )
        [choice] = answer.choices
        return _complete(choice.text, choice.finish_reason)

    async def _stream(self, tokens: int) -> str:
        text, reason = "", None
        async for piece in await self._client.completions.create(
            model=self._model, prompt=PROMPT, max_tokens=tokens, temperature=0, stream=True,
            extra_body={"ignore_eos": True},
        ):  # fmt: skip
            for choice in piece.choices:
                text, reason = text + choice.text, choice.finish_reason or reason
        return _complete(text, reason)


def _complete(text: str, reason: str | None) -> str:
    if reason != "length":
        raise ValueError(f"the answer breaks off: {text!r} ends with {reason}")
    return text


async def _main(url: str, model: str, pace: float, latest: float) -> None:
    loop = asyncio.get_running_loop()
    http = openai.DefaultAsyncHttpxClient(trust_env=False)
    async with openai.AsyncOpenAI(
        base_url=url, api_key="none", max_retries=0, timeout=latest, http_client=http
    ) as client:
        asking = _Client(client, model)
        loop.add_signal_handler(signal.SIGUSR1, asking.asks.clear)
        loop.add_signal_handler(signal.SIGUSR2, asking.asks.set)
        loop.add_signal_handler(signal.SIGTERM, asking.ended.set)
        await asking.ask_on(pace)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])))
