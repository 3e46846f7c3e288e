"""The HTTP API by itself, over an engine that answers with what the test says."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from engines import Scripted
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from tokenizers import Tokenizer, decoders, models

from arctic_workers.inference.engine import Output, SamplingField
from arctic_workers.inference.engines.native.step import Draw, Part, decode_parts, encode_parts
from arctic_workers.inference.http import server
from arctic_workers.inference.http.server import Api, Gate
from arctic_workers.inference.http.text import Text
from arctic_workers.inference.metrics import Metrics


def serve(text: Text, engine: Scripted, most_waiting: int = 8) -> Api:
    metrics = Metrics(CollectorRegistry(), engine.stats)
    return Api(engine, text, metrics, Gate(), model="tiny", vocabulary=300, most_waiting=most_waiting)


async def post(api: Api, path: str, **asked: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app=api.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
        return await client.post(path, content=json.dumps({"model": "tiny"} | asked).encode())


NUMBERS = st.integers() | st.sampled_from([2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63)])
REALS = st.floats() | st.sampled_from([0.0, 5e-324, 1e-320, 1e-6, 1.0, 2.0])
ASKED = {
    "max_tokens": NUMBERS,
    "temperature": REALS,
    "top_p": REALS,
    "top_k": NUMBERS,
    "seed": NUMBERS,
    "logprobs": NUMBERS,
}
PROMPTS = st.text(min_size=1, max_size=4) | st.lists(st.integers(0, 299) | NUMBERS, max_size=4)


def test_what_is_taken_survives_the_way_through_the_ranks(text: Text) -> None:
    """A number that does not fit into the tensor of a step would end the whole group."""

    @settings(max_examples=150, deadline=None)
    @given(asked=st.fixed_dictionaries({"prompt": PROMPTS}, optional=ASKED))
    def check(asked: dict[str, Any]) -> None:
        engine = Scripted()
        answer = asyncio.run(post(serve(text, engine), "/v1/completions", **asked))
        assert answer.status_code == (200 if engine.asked else 400), answer.text
        for request in engine.asked:
            part = Part(0, request.prompt, (0,), Draw.of(request.sampling))
            assert decode_parts(torch.tensor(encode_parts([part])).tolist()) == [part]

    check()


async def test_a_prompt_that_is_far_too_long_is_refused_without_the_work(
    text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "encode", lambda *_, **__: pytest.fail("it was tokenized"))
    api, long = serve(text, Scripted()), "a" * 4_000_000
    for path, asked in (
        ("/v1/completions", {"prompt": long}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": long}]}),
    ):
        refused = await post(api, path, **asked)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert "at least" in refused.json()["error"]["message"]


async def turns_during(
    call: str, owner: object, text: Text, monkeypatch: pytest.MonkeyPatch, path: str, **asked: Any
) -> int:
    """Ask, and return how often the loop came round while the owner's `call` was at work."""
    real, turns, seen = getattr(owner, call), 0, []

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    def watched(*given: Any, **named: Any) -> Any:
        before = turns
        made = real(*given, **named)
        seen.append(turns - before)
        return made

    monkeypatch.setattr(owner, call, watched)
    engine = Scripted()
    engine.max_length = 10_000_000
    turning = asyncio.create_task(turn())
    answer = await post(serve(text, engine), path, **asked)
    turning.cancel()
    assert answer.status_code == 200, answer.text
    [during] = seen
    return during


@pytest.fixture
def no_forced_switch() -> Iterator[None]:
    """Threads hand the interpreter on only where they let go of it themselves."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(600)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("no_forced_switch")
async def test_other_answers_go_on_while_a_large_prompt_is_tokenized(
    text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread by itself does not help: some of the tokenizer's calls keep the interpreter until they are done."""
    assert await turns_during("encode", text, text, monkeypatch, "/v1/completions", prompt="The operator " * 40_000)


async def test_other_answers_go_on_while_a_large_chat_is_rendered(text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [{"role": "user", "content": "x"}] * 50_000
    assert await turns_during("render", text.chat, text, monkeypatch, "/v1/chat/completions", messages=messages)


async def test_a_request_that_does_not_arrive_gives_its_place_back(text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_SECONDS", 1.0)
    api, sent = serve(text, Scripted(), most_waiting=1), asyncio.Event()

    async def half() -> AsyncGenerator[bytes, None]:
        yield b'{"model": "tiny", '
        sent.set()
        await asyncio.Event().wait()

    transport = httpx.ASGITransport(app=api.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
        slow = asyncio.create_task(client.post("/v1/completions", content=half()))
        await sent.wait()
        assert (await post(api, "/v1/completions", prompt="x")).status_code == 429, "it takes the only place"
        refused = await slow
    assert (refused.status_code, refused.json()["error"]["code"]) == (408, "request_timeout")
    assert refused.headers["connection"] == "close"
    assert (await post(api, "/v1/completions", prompt="x")).status_code == 200


def told(text: Text, answer: str) -> list[Output]:
    """The outputs that say so, each with the next as another candidate."""
    tokens = text.encode(answer)
    others = [*tokens[1:], tokens[0]]
    pairs = [((token, -0.5), (other, -1.0)) for token, other in zip(tokens, others, strict=True)]
    return [*(Output(pair[0][0], -0.5, pair) for pair in pairs[:-1]), Output(tokens[-1], -0.5, pairs[-1], "length")]


async def test_the_bytes_of_a_chats_tokens_make_up_its_text(text: Text) -> None:
    api = serve(text, Scripted(told(text, "Größe, 世界 🏔")))
    messages = [{"role": "user", "content": "x"}]
    answer = await post(api, "/v1/chat/completions", messages=messages, logprobs=True, top_logprobs=2)
    [choice] = answer.json()["choices"]
    content = choice["logprobs"]["content"]
    assert choice["message"]["content"] == "Größe, 世界 🏔"
    assert bytes(byte for token in content for byte in token["bytes"]).decode() == "Größe, 世界 🏔"
    assert any("\ufffd" in token["token"] for token in content), "some are parts of characters"
    assert all(bytes(top["bytes"]) for token in content for top in token["top_logprobs"])


async def test_a_completions_tokens_have_names_of_their_own_and_their_place_in_the_text(text: Text) -> None:
    api = serve(text, Scripted(told(text, "aß世b")))
    [choice] = (await post(api, "/v1/completions", prompt="x", logprobs=2)).json()["choices"]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["a", r"bytes:\xc3", r"bytes:\x9f", "世", "b"]
    assert logprobs["text_offset"] == [0, 1, 1, 2, 3]
    assert all(len(top) == 2 for top in logprobs["top_logprobs"])


async def test_candidates_with_one_text_are_told_apart(tmp_path: Path) -> None:
    made = Tokenizer(models.BPE({f"<0x{byte:02X}>": byte for byte in range(256)} | {"A": 256}, [], byte_fallback=True))
    made.decoder = decoders.ByteFallback()
    made.save(str(tmp_path / "tokenizer.json"))
    output = Output(256, -0.1, ((256, -0.1), (0x41, -2.5)), "length")
    answer = await post(serve(Text(tmp_path), Scripted([output])), "/v1/completions", prompt="A", logprobs=2)
    assert answer.json()["choices"][0]["logprobs"]["top_logprobs"] == [{"A": -0.1, r"bytes:\x41": -2.5}]


@pytest.mark.parametrize("top_k", [2**31, 2**63])
def test_a_number_too_large_for_a_tensor_is_refused(text: Text, top_k: int) -> None:
    answer = asyncio.run(post(serve(text, Scripted()), "/v1/completions", prompt="x", top_k=top_k))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "top_k")


async def get(api: Api, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=api.app), base_url="http://tiny") as client:
        return await client.get(path)


async def test_what_other_servers_answer_beside_the_api_is_there(text: Text) -> None:
    engine = Scripted()
    api = serve(text, engine)
    assert (await get(api, "/health")).json() == {"status": "ok"}
    assert re.fullmatch(r"[0-9.]+", (await get(api, "/version")).json()["version"])
    measured = (await get(api, "/metrics")).text
    assert "arctic_inference_requests_waiting 0.0" in measured
    engine.ready = False
    assert (await get(api, "/health")).status_code == 503


@pytest.mark.parametrize("field", ["prompt", "content"])
async def test_tokens_of_a_text_and_back(text: Text, field: str) -> None:
    api = serve(text, Scripted())
    said = (await post(api, "/tokenize", **{field: "The operator", "return_token_strs": True})).json()
    assert said["tokens"] == text.encode("The operator")
    assert (said["count"], said["max_model_len"]) == (len(said["tokens"]), 256)
    assert "".join(said["token_strs"]).replace("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", " ") == "The operator"
    back = (await post(api, "/detokenize", tokens=said["tokens"])).json()
    assert back == {"prompt": "The operator", "content": "The operator"}


async def test_tokens_of_a_conversation_are_those_that_a_chat_is_made_of(text: Text) -> None:
    engine = Scripted()
    api, messages = serve(text, engine), [{"role": "user", "content": "hi"}]
    said = (await post(api, "/tokenize", messages=messages)).json()
    await post(api, "/v1/chat/completions", messages=messages)
    assert list(engine.asked[0].prompt) == said["tokens"]


@pytest.mark.parametrize(
    ("path", "asked", "sentence"),
    [
        ("/tokenize", {}, "exactly one of"),
        ("/tokenize", {"prompt": "a", "content": "a"}, "exactly one of"),
        ("/detokenize", {"tokens": [10**6]}, "is not one of the model's"),
        ("/detokenize", {"tokens": "a"}, "valid array"),
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "content": None}], "continue_final_message": True},
         "no text to continue"),
    ],
)  # fmt: skip
async def test_what_cannot_be_tokenized_is_refused(text: Text, path: str, asked: dict[str, Any], sentence: str) -> None:
    answer = await post(serve(text, Scripted()), path, **asked)
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]["message"]


async def test_a_fault_in_the_models_template_is_the_requests_fault(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}\n{{ 1 / (messages | length - 1) }}")
    answer = await post(
        serve(Text(folder), Scripted()), "/v1/chat/completions", messages=[{"role": "user", "content": "a"}]
    )
    assert answer.status_code == 400
    assert "at its line 2" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("cannot", "asked"), [("seed", {"seed": 1}), ("top_k", {"top_k": 5}), ("logprobs", {"logprobs": 0})]
)
async def test_what_an_engine_cannot_do_is_refused_by_name(
    text: Text, cannot: SamplingField, asked: dict[str, int]
) -> None:
    engine = Scripted()
    api = serve(text, engine)
    assert (await post(api, "/v1/completions", prompt="x", **asked)).status_code == 200
    engine.cannot = frozenset({cannot})
    refused = await post(api, "/v1/completions", prompt="x", **asked)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, cannot)
    assert (await post(api, "/v1/completions", prompt="x")).status_code == 200
