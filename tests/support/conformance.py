"""What every engine has to do behind the API, as checks of a service on the local cluster, through its gateway.

A check knows no engine and expects no text of its own: what is asked is compared with what was answered before. Each is
bounded in requests, and none looks at the time.
"""

import asyncio
import math
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from groups import Served, until
from objects import Objects, is_ready, processes
from soak import bad_requests

from arctic_api.world import Label, Ports
from arctic_operator.manifests.gateway import HTTP_PORT

PROMPTS = ("The operator", "Each pod is told everything; a group answers", "x", "Größe, 世界")
LONG = 180
"""Tokens of an answer that is still being made when something happens to it."""
TRIES = 4
PATIENCE = 300.0
KIND = "ArcticInference"


class Endpoint(Served):
    """An ArcticInference of one group that is ready.

    Pods are reached at their own addresses, to which this machine has a route.
    """

    def __init__(self, objects: Objects, name: str) -> None:
        self.objects, self.name = objects, name

    @cached_property
    def url(self) -> str:
        """One of the gateways, which are all alike."""
        selector = f"{Label.NAME}={self.name},{Label.KIND}={KIND},{Label.ROLE}=gateway"
        gateway = next(pod for pod in self.objects.labelled("pods", selector) if is_ready(pod))
        return f"http://{gateway['status']['podIP']}:{HTTP_PORT}"

    @cached_property
    def _leader(self) -> str:
        selector = self.objects.status(KIND, self.name)["selector"]
        [leader] = [pod for pod in self.objects.labelled("pods", selector) if is_ready(pod)]
        return f"http://{leader['status']['podIP']}:{Ports().metrics}"

    def metrics(self) -> str:
        """Return the metrics of the leader that was there when first asked for."""
        return httpx.get(f"{self._leader}/metrics", trust_env=False).text

    def pods(self) -> list[dict[str, Any]]:
        """Return the group's pods, the leader first."""
        return self.objects.pods(self.name, KIND)

    @asynccontextmanager
    async def http(self) -> AsyncIterator[httpx.AsyncClient]:
        """A plain client."""
        async with httpx.AsyncClient(base_url=self.url, timeout=PATIENCE, trust_env=False) as client:
            yield client

    @asynccontextmanager
    async def client(self) -> AsyncIterator[openai.AsyncOpenAI]:
        """OpenAI's client, which tries nothing again."""
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE, http_client=http
        ) as client:
            yield client

    async def greedy(self, prompt: str | list[int], tokens: int) -> str:
        """Return the greedy answer to a prompt."""
        async with self.client() as client:
            answer = await client.completions.create(model=self.name, prompt=prompt, max_tokens=tokens, temperature=0.0)
        return answer.choices[0].text


# --- answers


async def a_stream_says_what_a_whole_answer_says(endpoint: Endpoint) -> None:
    asked: dict[str, Any] = {
        "model": endpoint.name,
        "messages": [{"role": "user", "content": PROMPTS[-1]}],
        "max_completion_tokens": 24,
        "seed": 7,
        "logprobs": True,
        "top_logprobs": 2,
    }
    async with endpoint.client() as client:
        whole = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        events = [event async for event in stream]
    choices = [event.choices[0] for event in events if event.choices]
    assert choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    reasons = [choice.finish_reason for choice in choices if choice.finish_reason]
    assert reasons == [whole.choices[0].finish_reason]
    assert events[-1].usage == whole.usage
    streamed = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content or []]
    assert streamed == whole.choices[0].logprobs.content
    assert len({event.id for event in events}) == 1
    assert sum(bool(choice.delta.content) for choice in choices) > 1, "it came in one piece"


async def an_answer_ends_before_a_stop_string(endpoint: Endpoint) -> None:
    asked: dict[str, Any] = {"model": endpoint.name, "prompt": PROMPTS[0], "max_tokens": 40, "temperature": 0}
    whole = await endpoint.greedy(PROMPTS[0], 40)
    stop = whole[len(whole) // 2 :][:3]
    async with endpoint.client() as client:
        cut = (await client.completions.create(**asked, stop=[stop])).choices[0]
        stream = await client.completions.create(**asked, stop=stop, stream=True)
        streamed = "".join([event.choices[0].text async for event in stream])
        echoed = (await client.completions.create(**asked, echo=True)).choices[0]
    assert (cut.text, cut.finish_reason) == (whole[: whole.index(stop)], "stop")
    assert streamed == cut.text
    assert echoed.text == PROMPTS[0] + whole


async def a_seed_decides_what_is_sampled(endpoint: Endpoint) -> None:
    asked: dict[str, Any] = {"model": endpoint.name, "prompt": PROMPTS[1], "max_tokens": 16, "temperature": 1.0}
    async with endpoint.client() as client:

        async def answer(seed: int) -> str:
            text: str = (await client.completions.create(**asked, seed=seed)).choices[0].text
            return text

        first = [await answer(seed) for seed in (1, 2, -3)]
        again = [await answer(seed) for seed in (1, 2, -3)]
        likeliest = await client.completions.create(**asked, seed=1, extra_body={"top_k": 1})
    assert again == first
    assert len(set(first)) == 3
    assert likeliest.choices[0].text == await endpoint.greedy(PROMPTS[1], 16)


async def logprobs_are_those_of_the_model_as_it_is(endpoint: Endpoint) -> None:
    """Of the model before temperature and cuts: the same first token has the same one, however it was chosen."""
    asked: dict[str, Any] = {"model": endpoint.name, "prompt": PROMPTS[0], "max_tokens": 8, "logprobs": 5}
    async with endpoint.client() as client:
        greedy = (await client.completions.create(**asked, temperature=0)).choices[0].logprobs
        sampled = (await client.completions.create(**asked, temperature=0.2, top_p=0.9, seed=3)).choices[0].logprobs
        none = (await client.completions.create(**asked | {"logprobs": 0}, temperature=0)).choices[0].logprobs
        silent = (await client.completions.create(**{**asked, "logprobs": None}, temperature=0)).choices[0].logprobs
    assert silent is None
    assert none.token_logprobs == greedy.token_logprobs
    assert not any(none.top_logprobs)
    for logprobs in (greedy, sampled):
        lengths = {len(logprobs.tokens), len(logprobs.token_logprobs), len(logprobs.top_logprobs)}
        assert lengths == {len(logprobs.text_offset)}
        for chosen, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
            values = list(top.values())
            assert chosen in values
            assert len(values) == (5 if chosen in values[:5] else 6), "the likeliest, and the chosen if none of them"
            assert values == sorted(values, reverse=True)
            assert sum(map(math.exp, values)) <= 1 + 1e-3
            assert chosen <= values[0]
    assert [max(top.values()) for top in greedy.top_logprobs] == greedy.token_logprobs
    first, same = (list(each.top_logprobs[0].items())[:5] for each in (sampled, greedy))
    assert first == same, "temperature or top_p changed what is reported"


async def a_bad_request_is_refused_with_a_sentence(endpoint: Endpoint) -> None:
    async with endpoint.http() as http:
        for status, content in bad_requests(endpoint.name):
            answer = await http.post("/v1/completions", content=content)
            shown = f"{content[:80]!r}: {answer.status_code} {answer.text}"
            assert answer.status_code == status, shown
            error = answer.json()["error"]
            assert error["type"] == "invalid_request_error", shown
            assert " " in error["message"], shown
        large = await http.post("/v1/completions", content=b" " * (4 * 1024 * 1024 + 1))
        assert large.status_code == 413
    async with endpoint.client() as client:
        assert [model.id for model in (await client.models.list()).data] == [endpoint.name]
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(model=endpoint.name, prompt="x", best_of=2)
    assert refused.value.param == "best_of"


async def each_prompt_has_its_choices(endpoint: Endpoint) -> None:
    """In the order of the prompts; the first of several is the one that is made alone."""
    asked: dict[str, Any] = {"model": endpoint.name, "max_tokens": 8, "temperature": 1.0, "seed": 4}
    async with endpoint.client() as client:
        alone = [(await client.completions.create(**asked, prompt=prompt)).choices[0].text for prompt in PROMPTS]
        whole = await client.completions.create(**asked, prompt=list(PROMPTS), n=2)
        stream = await client.completions.create(**asked, prompt=list(PROMPTS), n=2, stream=True)
        texts = [""] * (2 * len(PROMPTS))
        async for event in stream:
            for choice in event.choices:
                texts[choice.index] += choice.text
    assert [choice.index for choice in whole.choices] == list(range(2 * len(PROMPTS)))
    assert [choice.text for choice in whole.choices] == texts
    assert texts[::2] == alone
    assert texts[1::2] != alone


async def a_prompts_tokens_have_logprobs(endpoint: Endpoint) -> None:
    """What suites of likelihoods ask: each is that with which the token would be drawn after those before it."""
    async with endpoint.http() as http:
        tokenized = [(await http.post("/tokenize", json={"prompt": prompt})).json()["tokens"] for prompt in PROMPTS]
    asked: dict[str, Any] = {"model": endpoint.name, "temperature": 0, "logprobs": 1, "max_tokens": 1, "echo": True}
    async with endpoint.client() as client:
        echoed = await client.completions.create(**asked, prompt=tokenized)
        for tokens, choice in zip(tokenized, echoed.choices, strict=True):
            told = choice.logprobs
            assert len(told.token_logprobs) == len(tokens) + 1
            assert told.token_logprobs[0] is told.top_logprobs[0] is None
            assert told.text_offset == sorted(told.text_offset)
        bare = await client.completions.create(**asked | {"max_tokens": 0}, prompt=tokenized[0])
        one = (await client.completions.create(**asked | {"echo": False}, prompt=tokenized[0][:-1])).choices[0]
    told = echoed.choices[0].logprobs
    assert bare.choices[0].text == PROMPTS[0]
    assert bare.choices[0].logprobs.token_logprobs == pytest.approx(told.token_logprobs[:-1], abs=1e-2)
    [likeliest] = one.logprobs.top_logprobs[0].values()
    assert max(told.top_logprobs[-2].values()) == pytest.approx(likeliest, abs=1e-2)


async def penalties_and_biases_change_what_is_drawn(endpoint: Endpoint) -> None:
    asked: dict[str, Any] = {"model": endpoint.name, "prompt": PROMPTS[0], "max_tokens": 24, "temperature": 0}
    async with endpoint.http() as http:
        bare = {"prompt": "x", "add_special_tokens": False}
        token = (await http.post("/tokenize", json=bare)).json()["tokens"][-1]
    async with endpoint.client() as client:
        plain = await endpoint.greedy(PROMPTS[0], 24)
        biased = (await client.completions.create(**asked, logit_bias={str(token): 100})).choices[0].text
        varied = (await client.completions.create(**asked, presence_penalty=2, frequency_penalty=2)).choices[0].text
        again = (await client.completions.create(**asked, presence_penalty=2, frequency_penalty=2)).choices[0].text
        wide: dict[str, Any] = {"extra_body": {"min_p": 1.0}, "seed": 3}
        likeliest = (await client.completions.create(**asked | {"temperature": 1.0}, **wide)).choices[0].text
    assert set(biased.replace(" ", "")) == {"x"}
    assert varied == again != biased
    assert likeliest == plain


# --- many at once, and clients that leave


async def a_client_that_leaves_ends_its_request(endpoint: Endpoint) -> None:
    async with endpoint.client() as client:
        asked = await _long_question(endpoint, client)

        async def leave_a_stream() -> None:
            stream = await client.completions.create(**asked, stream=True)
            await anext(aiter(stream))
            await stream.close()

        async def leave_a_whole_answer() -> None:
            whole = asyncio.create_task(client.completions.create(**asked))

            async def runs_or_is_over() -> bool:
                return whole.done() or await endpoint.metric("requests_running") > 0

            await until(runs_or_is_over)
            whole.cancel()
            await asyncio.gather(whole, return_exceptions=True)

        for leave in (leave_a_stream, leave_a_whole_answer):
            await _until_cancelled(endpoint, leave)
    assert await endpoint.metric("kv_cache_utilization") == 0


async def _until_cancelled(endpoint: Endpoint, leave: Callable[[], Awaitable[None]]) -> None:
    """Leave until that counts as one request cancelled: on a busy machine an answer may be there first."""
    before = await _cancelled(endpoint)
    for _ in range(TRIES):
        await leave()
        await endpoint.until_idle()
        if counted := await _cancelled(endpoint) - before:
            assert counted == 1
            return
    raise AssertionError(f"{TRIES} clients left, and no request counts as cancelled")


async def _long_question(endpoint: Endpoint, client: openai.AsyncOpenAI) -> dict[str, Any]:
    """Return a request whose answer ends by its length alone."""
    for prompt in PROMPTS:
        asked: dict[str, Any] = {"model": endpoint.name, "prompt": prompt, "max_tokens": LONG, "temperature": 0}
        if (await client.completions.create(**asked)).choices[0].finish_reason == "length":
            return asked
    raise AssertionError("the model ends its answer to every prompt by itself")


async def _cancelled(endpoint: Endpoint) -> float:
    return await endpoint.metric('requests_total{outcome="cancelled"}', missing=0.0)


async def a_queue_that_is_too_long_is_refused(endpoint: Endpoint) -> None:
    """For a service with `maxSequences: 2`: a gateway sends four to its leader and keeps four."""
    async with endpoint.client() as client:
        asked = [
            asyncio.create_task(
                client.completions.create(model=endpoint.name, prompt="x", max_tokens=LONG, seed=seed, temperature=1.0)
            )
            for seed in range(24)
        ]
        refused = None
        for answer in asyncio.as_completed(asked):
            try:
                await answer
            except openai.RateLimitError as error:
                refused = error
                break
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    assert refused is not None, "every request was taken"
    assert refused.code == "queue_full"
    assert int(refused.response.headers["retry-after"]) >= 1
    await endpoint.until_idle()


Check = Callable[[Endpoint], Awaitable[None]]

SHORT: tuple[Check, ...] = (
    a_stream_says_what_a_whole_answer_says,
    an_answer_ends_before_a_stop_string,
    a_seed_decides_what_is_sampled,
    logprobs_are_those_of_the_model_as_it_is,
    each_prompt_has_its_choices,
    a_prompts_tokens_have_logprobs,
    penalties_and_biases_change_what_is_drawn,
    a_bad_request_is_refused_with_a_sentence,
    a_client_that_leaves_ends_its_request,
)
"""Seconds on any service."""


# --- lives of groups


def a_lost_pod_ends_and_remakes_its_group(endpoint: Endpoint) -> None:
    victim = endpoint.pods()[-1]["metadata"]["name"]
    with _remade(endpoint):
        endpoint.objects.kubectl("delete", "pod", victim, "--grace-period=0", "--force")


def a_killed_rank_ends_and_remakes_its_group(endpoint: Endpoint) -> None:
    """Nothing else in its pod is told: an engine may have more processes there."""
    with _remade(endpoint):
        rank = max(processes(endpoint.pods()[-1]), key=_resident)
        os.kill(int(rank.name), signal.SIGKILL)


def _resident(process: Path) -> int:
    """Return the pages that a process has in memory: the rank has the most, as it has the weights."""
    with suppress(OSError):
        return int((process / "statm").read_text().split()[1])
    return 0


@contextmanager
def _remade(endpoint: Endpoint) -> Iterator[None]:
    """Wait until every pod of the group is another, or has begun anew, and the service is ready."""
    before = {pod["metadata"]["uid"]: _restarts(pod) for pod in endpoint.pods()}
    yield

    def remade() -> bool:
        pods = endpoint.pods()
        anew = all(_restarts(pod) > before.get(pod["metadata"]["uid"], -1) for pod in pods)
        ready = endpoint.objects.status(KIND, endpoint.name).get("readyReplicas") == 1
        return ready and anew and len(pods) == len(before)

    endpoint.objects.eventually("all pods of the group have begun anew and are ready", remade, PATIENCE)


def _restarts(pod: dict[str, Any]) -> int:
    return sum(container["restartCount"] for container in pod["status"].get("containerStatuses", []))


class Questions:
    """Clients that ask on, whole answers and streams in turn, until told to stop; `failures` is what went wrong."""

    def __init__(self, endpoint: Endpoint, clients: int = 3) -> None:
        self._endpoint, self._clients = endpoint, clients
        self._stopping = asyncio.Event()
        self.answered = 0
        self.failures: list[str] = []

    async def ask(self) -> None:
        """Ask on."""
        async with self._endpoint.client() as client:
            await asyncio.gather(*[self._client(client, number) for number in range(self._clients)])

    def stop(self) -> None:
        """Let what was asked be answered, and ask no more."""
        self._stopping.set()

    async def are_answered(self, count: int) -> bool:
        """Whether so many are answered; a failure ends the wait for them."""
        return self.answered >= count or bool(self.failures)

    async def _client(self, client: openai.AsyncOpenAI, number: int) -> None:
        asked: dict[str, Any] = {
            "model": self._endpoint.name, "prompt": PROMPTS[number], "max_tokens": 32, "temperature": 0
        }  # fmt: skip
        while not self._stopping.is_set():
            try:
                await client.completions.create(**asked)
                stream = await client.completions.create(**asked, stream=True)
                reasons = [event.choices[0].finish_reason async for event in stream]
                if reasons[-1:] not in (["length"], ["stop"]):
                    self.failures.append(f"a stream broke off: {reasons}")
            except openai.OpenAIError as error:
                self.failures.append(repr(error))
            self.answered += 2


async def no_request_fails_while_another_group_takes_over(endpoint: Endpoint, change: dict[str, Any]) -> None:
    """`change` is one of the specification that makes new groups; the old one drains."""
    before = {pod["metadata"]["uid"] for pod in endpoint.pods()}
    questions = Questions(endpoint)
    asking = asyncio.create_task(questions.ask())

    def taken_over() -> bool:
        pods = endpoint.pods()
        status = endpoint.objects.status(KIND, endpoint.name)
        there = {pod["metadata"]["uid"] for pod in pods}
        return status.get("readyReplicas") == 1 and len(there) == len(before) and not there & before

    def take_over() -> None:
        endpoint.objects.apply(change)
        endpoint.objects.eventually("the new group has taken over", taken_over, PATIENCE)

    try:
        await asyncio.to_thread(take_over)
        after = questions.answered + 12
        await until(partial(questions.are_answered, after))
    finally:
        questions.stop()
        await asking
    assert questions.failures == []
