"""Real groups of two processes, over HTTP: what clients, the kubelet and the operator see."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
from conformance import (
    Check,
    Endpoint,
    a_prompts_tokens_have_logprobs,
    each_prompt_has_its_choices,
    penalties_and_biases_change_what_is_drawn,
)
from gateways import run_gateway
from groups import Group, until
from openai.types import Completion
from soak import Soak

from arctic_api.world import InferenceGroup
from arctic_rpc import control_pb2, control_pb2_grpc
from arctic_workers.inference.engine import Request, Sampling
from arctic_workers.inference.engines.native.engine import NativeEngine
from arctic_workers.inference.engines.native.group import Rank, bring_up
from arctic_workers.inference.engines.native.plan import plan_group
from arctic_workers.inference.http.text import Text

pytestmark = pytest.mark.processes

MakeGroup = Callable[..., list[InferenceGroup]]
CANCELLED = 'requests_total{outcome="cancelled"}'
LONG: dict[str, Any] = {"max_tokens": 250, "n": 64, "extra_body": {"ignore_eos": True}}
"""What no machine has made before somebody has looked."""
PROMPTS = ["The operator", "Each pod is told everything; a group answers", "x", "Größe"]


@pytest.fixture(scope="module")
def groups(make_group: MakeGroup) -> Iterator[list[Group]]:
    """Groups of two and of three ranks, so that each can be ended in its own way; they load at the same time."""
    batching = {"tokenBudget": 32, "maxSequences": 2}
    made = [Group(make_group(2, batching=batching)), Group(make_group(3))]
    try:
        for group in made:
            group.wait_until_ready()
        yield made
    finally:
        for group in made:
            group.end()


@pytest.fixture(scope="module")
def group(groups: list[Group]) -> Group:
    return groups[0]


@pytest.fixture
async def client(group: Group) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{group.url}/v1", api_key="none", max_retries=0) as made:
        yield made


async def one_process(make_group: MakeGroup, model_folder: Path) -> list[str]:
    """The same model in FP8 in this process, a prompt at a time."""
    [world] = make_group(1)
    plan = plan_group(world)

    def load(progress: Callable[[float], None]) -> Rank:
        return bring_up(plan, world, 0, on_loss=pytest.fail, on_stop=pytest.fail, progress=progress)

    engine = NativeEngine(plan, load, beat=lambda: None, on_failure=lambda error: pytest.fail(str(error)))
    text = Text(model_folder)
    await engine.start()
    answers = []
    for prompt in PROMPTS:
        request = Request(tuple(text.encode(prompt)), Sampling(40, temperature=0.0, stop_tokens=text.stop_tokens))
        answers.append(text.decode_finished([output.token async for output in engine.generate(request)]))
    await engine.stop()
    return answers


async def answers_of(group: Group) -> list[str]:
    asked = {"model": "tiny", "max_tokens": 40, "temperature": 0}
    async with httpx.AsyncClient(base_url=group.url, timeout=60) as http:
        together = [http.post("/v1/completions", json=asked | {"prompt": prompt}) for prompt in PROMPTS]
        return [answer.json()["choices"][0]["text"] for answer in await asyncio.gather(*together)]


async def test_two_and_three_ranks_answer_as_one_process_does(
    groups: list[Group], make_group: MakeGroup, model_folder: Path
) -> None:
    answers, more = await asyncio.gather(*map(answers_of, groups))
    assert answers == more
    assert answers == await one_process(make_group, model_folder)
    assert len(set(answers)) == len(PROMPTS)


async def test_a_stream_says_what_a_whole_answer_says(client: openai.AsyncOpenAI) -> None:
    asked = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Größe?"}],
        "max_completion_tokens": 24,
        "seed": 7,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = await client.chat.completions.create(**asked)
    stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    events = [event async for event in stream]
    choices = [event.choices[0] for event in events if event.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    assert choices[0].delta.role == "assistant"
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["length"]
    assert events[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 24
    streamed = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content or []]
    assert whole.choices[0].logprobs is not None
    assert streamed == whole.choices[0].logprobs.content
    assert len(streamed) == 24
    assert all(len(entry.top_logprobs) == 2 for entry in streamed)


async def test_an_answer_ends_before_a_stop_string(client: openai.AsyncOpenAI) -> None:
    asked = {"model": "tiny", "prompt": "The operator", "max_tokens": 40, "temperature": 0}
    whole = (await client.completions.create(**asked)).choices[0].text
    stop = whole[len(whole) // 2 :][:3]
    cut = (await client.completions.create(**asked, stop=[stop])).choices[0]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"
    stream = await client.completions.create(**asked, stop=stop, stream=True)
    assert "".join([event.choices[0].text async for event in stream]) == cut.text
    echoed = await client.completions.create(**asked, echo=True)
    assert echoed.choices[0].text == "The operator" + whole


class Local(Endpoint):
    """A group without a cluster around it."""

    def __init__(self, group: Group) -> None:
        self.name, self.url = "tiny", group.url


@pytest.mark.parametrize(
    "check",
    [each_prompt_has_its_choices, a_prompts_tokens_have_logprobs, penalties_and_biases_change_what_is_drawn],
)
async def test_two_ranks_do_what_every_engine_has_to(group: Group, check: Check) -> None:
    await check(Local(group))


async def test_errors_are_openais(client: openai.AsyncOpenAI, group: Group) -> None:
    with pytest.raises(openai.NotFoundError, match="write 'tiny'") as missing:
        await client.completions.create(model="other", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="'best_of' chooses nothing here"):
        await client.completions.create(model="tiny", prompt="x", best_of=2)
    with pytest.raises(openai.BadRequestError, match="maximum context length is 256 tokens") as long:
        await client.completions.create(model="tiny", prompt="x" * 300, max_tokens=1)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="the prompt is empty"):
        await client.completions.create(model="tiny", prompt="")
    with pytest.raises(openai.BadRequestError, match="token 999999 is not one"):
        await client.completions.create(model="tiny", prompt=[999999])
    async with httpx.AsyncClient(base_url=group.url) as http:
        large = await http.post("/v1/completions", content=b" " * (4 * 1024 * 1024 + 1))
        assert large.status_code == 413
        unknown = await http.get("/v1/wings")
        assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "invalid_request_error")
        assert (await http.get("/health")).status_code == 200
    models = await client.models.list()
    assert [model.id for model in models.data] == ["tiny"]
    assert (await client.models.retrieve("tiny")).id == "tiny"


async def until_busy(group: Group) -> None:
    async def busy() -> bool:
        return await group.metric("requests_running") > 0

    await until(busy)


async def test_a_client_that_leaves_ends_its_request(client: openai.AsyncOpenAI, group: Group) -> None:
    asked = {"model": "tiny", "prompt": "x", **LONG}
    before = await group.metric(CANCELLED)
    stream = await client.completions.create(**asked, stream=True)
    await anext(aiter(stream))
    await stream.close()
    await group.until_idle()
    whole = asyncio.create_task(client.completions.create(**asked))
    await until_busy(group)
    whole.cancel()
    await group.until_idle()
    assert await group.metric(CANCELLED) >= before + 2


@pytest.mark.timeout(0)  # as long as the traffic that is asked for takes
async def test_traffic_of_every_kind_is_answered_and_leaves_nothing_behind(
    group: Group, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """Short here; `make soak` runs it long."""
    soaked = await Soak(group, pytestconfig.getoption("--seed")).run(pytestconfig.getoption("--requests"))
    with capsys.disabled():
        print(json.dumps(soaked.figures()), flush=True)
    assert soaked.answered > 0
    assert (soaked.failed_wellformed, soaked.changed, soaked.wrongly_refused) == ([], [], [])
    assert soaked.cache_left == 0


async def first_refusal(asked: list[asyncio.Task[Completion]]) -> openai.RateLimitError:
    """Return the first refusal; requests that came early may be answered before it."""
    for answer in asyncio.as_completed(asked):
        try:
            await answer
        except openai.RateLimitError as refused:
            return refused
    raise AssertionError("every request was taken")


async def test_a_queue_that_is_too_long_is_refused(client: openai.AsyncOpenAI, group: Group) -> None:
    asked = [asyncio.create_task(client.completions.create(model="tiny", prompt="x", **LONG)) for _ in range(24)]
    refused = await first_refusal(asked)
    assert refused.response.headers["retry-after"] == "1"
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    await group.until_idle()


async def test_metrics_and_state_tell_what_the_group_does(client: openai.AsyncOpenAI, group: Group) -> None:
    await client.completions.create(model="tiny", prompt="x", max_tokens=2)
    await group.until_idle()
    text = group.metrics()
    for name in (
        "requests_waiting 0.0",
        "requests_running 0.0",
        "kv_cache_utilization 0.0",
        "time_to_first_token_seconds_bucket",
        "time_per_output_token_seconds_bucket",
        "e2e_latency_seconds_bucket",
        "prompt_tokens_total",
        "generated_tokens_total",
    ):
        assert f"arctic_inference_{name}" in text
    with grpc.insecure_channel(f"127.0.0.1:{group.worlds[0].ports.control}") as channel:
        states = control_pb2_grpc.ControlStub(channel).Watch(control_pb2.WatchRequest(), timeout=60)
        state = next(state for state in states if state.inference.ttft_p99_seconds > 0)
    assert state.phase == control_pb2.RUNNING
    assert state.inference.ready


async def test_a_group_that_drains_finishes_what_it_has_and_ends_well(group: Group) -> None:
    """SIGTERM comes to a follower first: it is the leader that ends the group."""
    slow = {"model": "tiny", "prompt": "x", "max_tokens": 200, "n": 8, "ignore_eos": True}
    async with (
        httpx.AsyncClient(base_url=group.url, timeout=None) as http,
        httpx.AsyncClient(base_url=group.url) as new,
    ):
        assert (await http.get("/health")).status_code == 200
        answer = asyncio.create_task(http.post("/v1/completions", json=slow))

        async def draining() -> bool:
            turned = await new.post("/v1/completions", json=slow | {"max_tokens": 1, "n": 1})
            assert turned.status_code == 200, "who sends has had no time to hear of it"
            return turned.headers.get("connection") == "close"

        await until_busy(group)
        group.processes[1].send_signal(signal.SIGTERM)
        await until(draining)
        assert not group.ready(0), "the gateway leaves it out"
        finished = await answer
        assert finished.status_code == 200
        assert finished.json()["usage"]["completion_tokens"] == 8 * 200
    codes = [await asyncio.to_thread(process.wait, 120) for process in group.processes]
    assert codes == [0, 0], group.logs()


async def test_a_draining_leader_serves_everybody_for_a_while_and_then_connections_that_are_open(
    groups: list[Group],
) -> None:
    """A proxy may have sent a request before it heard: none is lost, and the connection is then closed."""
    group, asked = groups[1], {"model": "tiny", "prompt": "x", "max_tokens": 2}
    async with (
        httpx.AsyncClient(base_url=group.url) as client,
        httpx.AsyncClient(base_url=group.url) as kept,
        grpc.aio.insecure_channel(f"127.0.0.1:{group.worlds[0].ports.control}") as channel,
    ):
        for one in (client, kept):
            assert (await one.post("/v1/completions", json=asked)).headers.get("connection") != "close"
        control = control_pb2_grpc.ControlStub(channel)
        await control.Drain(control_pb2.DrainRequest())
        async for state in control.Watch(control_pb2.WatchRequest()):
            if state.inference.draining:
                assert state.phase == control_pb2.DRAINING
                break
        answers = [await client.post("/v1/completions", json=asked) for _ in range(2)]
        assert [(served.status_code, served.headers["connection"]) for served in answers] == [(200, "close")] * 2

        async def turned_away() -> bool:
            answers.append(await client.post("/v1/completions", json=asked))
            return answers[-1].status_code != 200

        await until(turned_away)
        assert (answers[-1].status_code, answers[-1].json()["error"]["code"]) == (503, "draining")
        assert (answers[-1].headers["connection"], answers[-1].headers["retry-after"]) == ("close", "5")
        assert (await kept.post("/v1/completions", json=asked)).status_code == 200
        assert group.ready(0), "the operator deletes at once what drains and is not ready"


def test_no_request_is_lost_when_a_leader_behind_a_gateway_is_told_to_stop(
    make_group: MakeGroup, tmp_path: Path
) -> None:
    """As when its pod is evicted: nobody but the leader itself tells the gateway."""
    asked = {"model": "tiny", "prompt": "x", "max_tokens": 1}
    leader = Group(make_group(1))
    try:
        leader.wait_until_ready()
        with run_gateway(tmp_path, leaders=1, beside=leader.worlds[0].ports) as gateway:
            stand_in = gateway.leaders[0].address
            answers: list[httpx.Response] = []

            def ask() -> bool:
                """Whether it was the real one that answered."""
                answers.append(gateway.post("/v1/completions", json=asked, content=None))
                return answers[-1].text != stand_in

            while not ask():
                pass
            leader.processes[0].send_signal(signal.SIGTERM)
            while leader.processes[0].poll() is None:
                ask()
            assert not ask()
            assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
        assert leader.processes[0].wait() == 0, leader.logs()
    finally:
        leader.end()


def test_a_lost_peer_ends_the_group(groups: list[Group]) -> None:
    leader, middle, last = groups[1].processes
    last.kill()
    assert (leader.wait(120), middle.wait(120)) == (1, 1)
    for world in groups[1].worlds[:2]:
        assert "broke" in Path(world.termination_message).read_text()
