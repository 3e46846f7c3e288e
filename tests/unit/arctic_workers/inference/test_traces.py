"""A real group over HTTP that sends its traces to a real collector, through the gateway too."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from collector import Collector, Span, collecting
from gateways import run_gateway
from groups import Group

from arctic_api.tracing import Place
from arctic_api.world import TRACES_VARIABLE, InferenceGroup

pytestmark = pytest.mark.processes

MakeGroup = Callable[..., list[InferenceGroup]]
TRACE, PARENT = "ab" * 16, "cd" * 8
PROMPT, KEY = "a secret that nobody else is to read", "sk-not-for-the-traces"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.fixture(scope="module")
def group(make_group: MakeGroup, collector: Collector) -> Iterator[Group]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TRACES_VARIABLE, collector.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        group = Group(make_group(1))
    try:
        group.wait_until_ready()
        yield group
    finally:
        group.end()


def ask(group: Group, path: str, number: str, **asked: object) -> httpx.Response:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": number, "Authorization": f"Bearer {KEY}"}
    return httpx.post(f"{group.url}{path}", json={"model": "tiny", **asked}, headers=headers, timeout=60)


def parts_of(collector: Collector, request: Span) -> list[Span]:
    """The spans under a request's, in the order of their begin."""
    parts = [span for span in collector.spans if span.parent == request.id]
    return sorted(parts, key=lambda span: span.begun)


def test_a_request_is_told_with_its_parts_in_the_clients_trace(group: Group, collector: Collector) -> None:
    message = {"role": "user", "content": PROMPT}
    chat = {"max_tokens": 5, "temperature": 0.5, "messages": [message], "ignore_eos": True}
    whole = ask(group, "/v1/chat/completions", "one", **chat).json()
    assert "data: [DONE]" in ask(group, "/v1/chat/completions", "two", stream=True, **chat).text
    spans = collector.wait_for("load", "chat tiny", "decode")
    load = next(span for span in spans if span.name == "load")
    world = group.worlds[0]
    assert (load.trace, load.parent, load.error) == (f"{Place.of(world.uid).trace:032x}", "", "")
    assert load.attributes["arctic.group"] == world.group
    assert (load.about["service.name"], load.about["arctic.name"]) == ("arctic-inference", "tiny")
    request = collector.request("one")
    assert (request.trace, request.parent, request.kind, request.error) == (TRACE, PARENT, 2, "")
    assert request.links == ((load.trace, load.id),)
    told = request.attributes
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == told["gen_ai.response.model"] == "tiny"
    assert told["gen_ai.response.id"] == whole["id"]
    assert (told["gen_ai.request.max_tokens"], told["gen_ai.request.temperature"]) == (5, 0.5)
    assert told["gen_ai.usage.input_tokens"] == whole["usage"]["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == 5
    assert (told["gen_ai.response.finish_reasons"], told["http.response.status_code"]) == (["length"], 200)
    assert "error.type" not in told
    assert collector.request("two").attributes["gen_ai.usage.output_tokens"] == 5
    queue, prefill, decode = parts_of(collector, request)
    assert [queue.name, prefill.name, decode.name] == ["queue", "prefill", "decode"]
    assert request.begun <= queue.begun <= queue.ended <= prefill.ended <= decode.ended <= request.ended
    assert (queue.ended, prefill.ended) == pytest.approx((prefill.begun, decode.begun), abs=1e6)


def test_a_request_that_is_refused_is_told_and_no_fault_of_the_servers(group: Group, collector: Collector) -> None:
    assert ask(group, "/v1/completions", "three", prompt=PROMPT, max_tokens=10**6).status_code == 400
    assert httpx.get(f"{group.url}/v1/models").status_code == 200
    request = collector.request("three")
    assert (request.name, request.attributes["http.response.status_code"]) == ("text_completion", 400)
    assert (request.error, parts_of(collector, request)) == ("", [])


def test_the_gateway_hands_the_clients_trace_on(group: Group, collector: Collector, tmp_path: Path) -> None:
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 2, "ignore_eos": True}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "four"}
    with run_gateway(tmp_path, leaders=1, beside=group.worlds[0].ports) as gateway:
        stand_in = gateway.leaders[0].address
        while gateway.post("/v1/completions", json=asked, content=None, headers=headers).text == stand_in:
            pass
    request = collector.request("four")
    assert (request.trace, request.parent) == (TRACE, PARENT)


def test_no_trace_has_a_prompt_or_a_key(group: Group, collector: Collector) -> None:
    ask(group, "/v1/completions", "five", prompt=PROMPT, max_tokens=1)
    group.processes[0].send_signal(signal.SIGTERM)
    assert group.processes[0].wait(60) == 0
    assert collector.request("five").name == "text_completion tiny"
    assert b"tiny" in collector.raw
    for secret in (PROMPT, KEY):
        assert secret.encode() not in collector.raw
