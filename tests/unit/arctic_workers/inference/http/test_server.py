"""The HTTP API by itself, over an engine that answers with what the test says."""

import asyncio
import gzip
import json
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from engines import Scripted
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from tokenizers import Tokenizer, decoders, models, processors

from arctic_workers.inference.engine import UNLIMITED, EngineError, Output, Request, Sampling, SamplingField, Stats
from arctic_workers.inference.engines.native.step import Draw, Part, decode_parts, encode_parts
from arctic_workers.inference.http import server
from arctic_workers.inference.http.answer import Answers
from arctic_workers.inference.http.forms import CompletionForm
from arctic_workers.inference.http.server import Api, Gate
from arctic_workers.inference.http.text import Text
from arctic_workers.inference.metrics import Metrics


def serve(
    text: Text,
    engine: Scripted,
    most_waiting: int = 8,
    most_running: int = 2,
    cors: tuple[str, ...] = (),
    adapters: tuple[str, ...] = (),
) -> Api:
    metrics = Metrics(CollectorRegistry(), engine.stats)
    most = {"most_waiting": most_waiting, "most_running": most_running}
    return Api(engine, text, metrics, Gate(), model="tiny", adapters=adapters, vocabulary=300, cors=cors, **most)


async def ask(api: Api, method: str, path: str, **given: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app=api.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
        return await client.request(method, path, **given)


async def post(api: Api, path: str, **asked: Any) -> httpx.Response:
    return await ask(api, "POST", path, content=json.dumps({"model": "tiny"} | asked).encode())


async def ask_app(api: Api, path: str, asked: dict[str, Any], send: Callable[[Any], Awaitable[None]]) -> None:
    """Ask as a server does, which hears of each part of an answer as it leaves; nobody hangs up."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [],
    }
    body = iter([{"type": "http.request", "body": json.dumps(asked).encode(), "more_body": False}])

    async def receive() -> dict[str, Any]:
        if (message := next(body, None)) is not None:
            return message
        await asyncio.sleep(3600)
        raise AssertionError

    await api.app(scope, receive, send)


NUMBERS = st.integers() | st.sampled_from([2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63)])
REALS = st.floats() | st.sampled_from([0.0, 5e-324, 1e-320, 1e-6, 1.0, 2.0])
ASKED = {
    "max_tokens": NUMBERS,
    "temperature": REALS,
    "top_p": REALS,
    "top_k": NUMBERS,
    "seed": NUMBERS,
    "logprobs": NUMBERS,
    "echo": st.booleans(),
    "n": st.integers(1, 3),
    "min_p": REALS,
    "priority": NUMBERS,
    "min_tokens": NUMBERS,
    "frequency_penalty": REALS,
    "presence_penalty": REALS,
    "repetition_penalty": REALS,
    "logit_bias": st.dictionaries(st.integers(0, 299) | NUMBERS, REALS, max_size=2),
    "stop_token_ids": st.lists(st.integers(0, 299) | NUMBERS, max_size=2),
    "ignore_eos": st.booleans(),
}
PROMPTS = st.text(min_size=1, max_size=4) | st.lists(st.integers(0, 299) | NUMBERS, max_size=4)


def test_what_is_taken_survives_the_way_through_the_ranks(text: Text) -> None:
    """A number that does not fit into the tensor of a step would end the whole group."""

    @settings(max_examples=150)
    @given(asked=st.fixed_dictionaries({"prompt": PROMPTS}, optional=ASKED))
    def check(asked: dict[str, Any]) -> None:
        engine = Scripted()
        answer = asyncio.run(post(serve(text, engine), "/v1/completions", **asked))
        assert answer.status_code == (200 if engine.asked else 400), answer.text
        for request in engine.asked:
            part = Part(0, request.prompt, (0,), Draw.of(request.sampling, len(request.prompt)))
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
    """Ask, and return how often the loop came round while the owner's `call` was at work, all its times together."""
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
    engine = Counting()
    engine.max_length = 10_000_000
    turning = asyncio.create_task(turn())
    answer = await post(serve(text, engine), path, **{"max_tokens": 1} | asked if path.startswith("/v1") else asked)
    turning.cancel()
    assert answer.status_code == 200, answer.text
    assert seen
    return sum(seen)


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


async def test_other_answers_go_on_while_many_prompts_are_tokenized(
    text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them is small."""
    assert await turns_during("encode", text, text, monkeypatch, "/v1/completions", prompt=["The operator " * 99] * 999)


@pytest.mark.parametrize(("stream", "call"), [(False, "whole"), (True, "events")])
async def test_other_answers_go_on_while_a_prompts_tokens_are_told_with_every_choice(
    text: Text, monkeypatch: pytest.MonkeyPatch, stream: bool, call: str
) -> None:
    asked = {"prompt": "abc " * 1000, "echo": True, "logprobs": 1, "n": 16, "max_tokens": 1, "stream": stream}
    assert await turns_during(call, CompletionForm, text, monkeypatch, "/v1/completions", **asked)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", {"prompt": [[7] * 1000] * 1000}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}] * 50_000}),
        ("/tokenize", {"messages": [{"role": "user", "content": "x"}] * 50_000}),
        ("/detokenize", {"tokens": [7] * 1_000_000}),
    ],
)
async def test_other_answers_go_on_while_a_large_body_is_read(
    text: Text, monkeypatch: pytest.MonkeyPatch, path: str, asked: dict[str, Any]
) -> None:
    assert await turns_during("parse", server, text, monkeypatch, path, **asked)


@pytest.mark.parametrize(
    ("path", "asked"),
    [("/v1/completions", {"prompt": [7] * 1_000_000}), ("/detokenize", {"tokens": [7] * 1_000_000})],
)
async def test_other_answers_go_on_while_many_tokens_are_looked_at(
    text: Text, monkeypatch: pytest.MonkeyPatch, path: str, asked: dict[str, Any]
) -> None:
    assert await turns_during("_known", Api, text, monkeypatch, path, **asked)


async def test_other_answers_go_on_while_many_tokens_are_told(text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"prompt": "The operator " * 40_000, "return_token_strs": True}
    assert await turns_during("_tell_tokens", Api, text, monkeypatch, "/tokenize", **asked)


async def test_other_answers_go_on_while_many_tokens_are_made_text(text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = text.encode("The operator ") * 20_000
    assert await turns_during("decode", text, text, monkeypatch, "/detokenize", tokens=tokens)


async def test_a_request_that_does_not_arrive_gives_its_place_back(text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_SECONDS", 3.0)
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


async def test_a_body_that_is_too_large_is_refused_once_it_is_sent(text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who still sends would find a broken connection; what never ends is not waited for."""
    monkeypatch.setattr(server, "MOST_BODY_BYTES", 1000)
    monkeypatch.setattr(server, "READ_PAST_BYTES", 5000)
    sent = 0

    async def body(pieces: int) -> AsyncGenerator[bytes, None]:
        nonlocal sent
        for sent in range(1, pieces + 1):  # noqa: B007 - how far it came
            yield b" " * 1000

    api = serve(text, Scripted())
    for pieces, read in ((4, 4), (1000, 6)):
        refused = await ask(api, "POST", "/v1/completions", content=body(pieces))
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_large")
        assert sent == read


async def test_a_compressed_body_is_refused_as_such(text: Text) -> None:
    """It would be no JSON, which its client knows better."""
    body = json.dumps({"model": "tiny", "prompt": "a"}).encode()
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        refused = await ask(
            serve(text, Scripted()), "POST", path, content=gzip.compress(body), headers={"content-encoding": "gzip"}
        )
        assert (refused.status_code, refused.json()["error"]["code"]) == (415, "unsupported_encoding")
        assert "gzip" in refused.json()["error"]["message"]
        assert refused.headers["accept-encoding"] == "identity"
    plain = await ask(
        serve(text, Scripted()), "POST", "/v1/completions", content=body, headers={"content-encoding": "identity"}
    )
    assert plain.status_code == 200


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


async def test_a_completions_chosen_token_is_told_among_the_likeliest(text: Text) -> None:
    """Of which it need not be one."""
    [chosen, other] = text.encode("ab")
    unlikely = Output(chosen, -3.0, ((other, -0.1),))
    likely = Output(other, -0.1, ((other, -0.1),), "length", ())
    api = serve(text, Scripted([unlikely, likely]))
    [choice] = (await post(api, "/v1/completions", prompt="x", logprobs=1)).json()["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"b": -0.1, "a": -3.0}, {"b": -0.1}]


async def test_candidates_with_one_text_are_told_apart(tmp_path: Path) -> None:
    made = Tokenizer(models.BPE({f"<0x{byte:02X}>": byte for byte in range(256)} | {"A": 256}, [], byte_fallback=True))
    made.decoder = decoders.ByteFallback()
    made.save(str(tmp_path / "tokenizer.json"))
    output = Output(256, -0.1, ((256, -0.1), (0x41, -2.5)), "length")
    answer = await post(serve(Text(tmp_path), Scripted([output])), "/v1/completions", prompt="A", logprobs=2)
    assert answer.json()["choices"][0]["logprobs"]["top_logprobs"] == [{"A": -0.1, r"bytes:\x41": -2.5}]


def strict(answer: bytes | str) -> Any:
    """JSON, of which `NaN` and `Infinity` are no part though Python reads them."""
    return json.loads(answer, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("found", "shown"), [(float("-inf"), -9999.0), (-1e30, -9999.0), (float("nan"), None)])
async def test_a_probability_that_is_none_is_told_in_json(
    text: Text, found: float, shown: float | None, stream: bool
) -> None:
    """Of 0, as OpenAI tells of what is very unlikely; of a model that computes no numbers, nothing."""
    [chosen, other] = text.encode("ab")
    top = ((other, -0.5), (chosen, found))
    api = serve(text, Scripted([Output(chosen, found, top, "length", (Output(other), Output(chosen, found, top)))]))

    async def told(path: str, **asked: Any) -> list[Any]:
        answer = await post(api, path, stream=stream, **asked)
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n")]
        logprobs = [strict(line)["choices"][0]["logprobs"] for line in lines if line.startswith("{")]
        return [each for each in logprobs if each]

    [completion] = await told("/v1/completions", prompt="a", logprobs=2, echo=True)
    assert completion["token_logprobs"] == [None, shown, shown]
    assert completion["top_logprobs"] == [None, *[{"b": -0.5, "a": shown}] * 2]
    messages = [{"role": "user", "content": "x"}]
    [chat] = await told("/v1/chat/completions", messages=messages, logprobs=True, top_logprobs=2)
    [token] = chat["content"]
    assert (token["logprob"], token["top_logprobs"][1]["logprob"]) == (shown, shown)


@pytest.mark.parametrize("top_k", [2**31, 2**63])
def test_a_number_too_large_for_a_tensor_is_refused(text: Text, top_k: int) -> None:
    answer = asyncio.run(post(serve(text, Scripted()), "/v1/completions", prompt="x", top_k=top_k))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "top_k")


async def get(api: Api, path: str) -> httpx.Response:
    return await ask(api, "GET", path)


async def test_what_other_servers_answer_beside_the_api_is_there(text: Text) -> None:
    engine = Scripted()
    api = serve(text, engine)
    assert (await get(api, "/health")).json() == {"status": "ok"}
    assert re.fullmatch(r"[0-9.]+", (await get(api, "/version")).json()["version"])
    measured = (await get(api, "/metrics")).text
    assert "arctic_inference_requests_waiting 0.0" in measured
    engine.ready = False
    assert (await get(api, "/health")).status_code == 503


async def test_adapters_are_further_models_that_a_request_chooses(text: Text) -> None:
    engine = Scripted()
    api = serve(text, engine, adapters=("clerk", "poet"))
    cards = (await get(api, "/v1/models")).json()["data"]
    assert [(card["id"], card.get("parent")) for card in cards] == [("tiny", None), ("clerk", "tiny"), ("poet", "tiny")]
    assert (await get(api, "/v1/models/poet")).json()["id"] == "poet"
    for name in ("poet", "tiny"):
        answer = await post(api, "/v1/completions", model=name, prompt="a", max_tokens=1)
        assert answer.json()["model"] == name
    assert [request.adapter for request in engine.asked] == ["poet", None]
    answer = await post(api, "/v1/completions", model="cook", prompt="a")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "There is no model 'cook' here; write 'tiny' or 'clerk' or 'poet'"


@pytest.mark.parametrize("field", ["prompt", "content"])
async def test_tokens_of_a_text_and_back(text: Text, field: str) -> None:
    api = serve(text, Scripted())
    said = (await post(api, "/tokenize", **{field: "The operator", "return_token_strs": True})).json()
    assert said["tokens"] == text.encode("The operator")
    assert (said["count"], said["max_model_len"]) == (len(said["tokens"]), 256)
    assert "".join(said["token_strs"]).replace("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", " ") == "The operator"
    back = (await post(api, "/detokenize", tokens=said["tokens"])).json()
    assert back == {"prompt": "The operator", "content": "The operator"}


@pytest.fixture
def begins(folder: Path) -> Text:
    """A tokenizer that puts token 0 before each text, and a template that writes no sign of it."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    first = tokenizer.id_to_token(0)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    return Text(folder)


@pytest.mark.parametrize(
    ("asked", "begun"),
    [
        ({"prompt": "hi"}, True),
        ({"prompt": "hi", "add_special_tokens": False}, False),
        ({"content": "hi"}, False),
        ({"content": "hi", "add_special": False}, False),
        ({"content": "hi", "add_special": True}, True),
        ({"messages": [{"role": "user", "content": "hi"}]}, False),
        ({"messages": [{"role": "user", "content": "hi"}], "add_special_tokens": False}, False),
        ({"messages": [{"role": "user", "content": "hi"}], "add_special_tokens": True}, True),
    ],
)
async def test_a_tokenizers_own_special_tokens_are_added_as_vllm_and_llama_cpp_do(
    begins: Text, asked: dict[str, Any], begun: bool
) -> None:
    engine = Scripted()
    api, plain = serve(begins, engine), begins.encode("hi", special=False)
    wanted = [0, *plain] if begun else plain
    assert (await post(api, "/tokenize", **asked)).json()["tokens"] == wanted
    if "content" not in asked:
        await post(api, "/v1/chat/completions" if "messages" in asked else "/v1/completions", **asked)
        assert list(engine.asked[0].prompt) == wanted


async def test_a_template_sees_tools_that_may_not_be_called(folder: Path) -> None:
    """As with vLLM: of an agent's last answer nothing else has changed since its calls."""
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ tools[0].function.name }}"}))
    engine, text = Scripted(), Text(folder)
    asked = {"messages": [{"role": "user", "content": "hi"}], "tools": [{"function": {"name": "weather"}}]}
    api = serve(text, engine)
    assert (await post(api, "/v1/chat/completions", **asked, tool_choice="none")).status_code == 200
    assert list(engine.asked[0].prompt) == text.encode("weather", special=False)
    assert (await post(api, "/tokenize", **asked)).json()["tokens"] == list(engine.asked[0].prompt)


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
    ("cannot", "asked", "name"),
    [
        ("seed", {"seed": 1}, "seed"),
        ("top_k", {"top_k": 5}, "top_k"),
        ("logprobs", {"logprobs": 0}, "logprobs"),
        ("prompt_logprobs", {"logprobs": 0, "echo": True}, "echo"),
        ("min_p", {"min_p": 0.1}, "min_p"),
        ("min_tokens", {"min_tokens": 1}, "min_tokens"),
        ("frequency_penalty", {"frequency_penalty": 0.1}, "frequency_penalty"),
        ("repetition_penalty", {"repetition_penalty": 1.1}, "repetition_penalty"),
        ("logit_bias", {"logit_bias": {"3": 1}}, "logit_bias"),
        ("priority", {"priority": 1}, "priority"),
    ],
)
async def test_what_an_engine_cannot_do_is_refused_by_name(
    text: Text, cannot: SamplingField, asked: dict[str, Any], name: str
) -> None:
    engine = Scripted()
    api = serve(text, engine)
    assert (await post(api, "/v1/completions", prompt="x", **asked)).status_code == 200
    engine.cannot = frozenset({cannot})
    refused = await post(api, "/v1/completions", prompt="x", **asked)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)
    assert (await post(api, "/v1/completions", prompt="x")).status_code == 200


async def test_what_an_engine_cannot_do_of_one_request_is_refused_in_its_words(text: Text) -> None:
    """Before anything is begun, so that a stream is refused as well."""

    class Particular(Scripted):
        def problem(self, request: Request) -> str | None:
            return "too many stop tokens; write fewer" if len(request.sampling.stop_tokens) > 2 else None

    engine = Particular()
    api, asked = serve(text, engine), {"messages": [{"role": "user", "content": "x"}], "ignore_eos": True}
    for stream in (False, True):
        refused = await post(api, "/v1/chat/completions", stop_token_ids=[1, 2, 3], stream=stream, **asked)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_value")
        assert refused.json()["error"]["message"] == "too many stop tokens; write fewer"
    assert not engine.asked
    assert (await post(api, "/v1/chat/completions", stop_token_ids=[1, 2], **asked)).status_code == 200


# --- several prompts, several answers


class Counting(Scripted):
    """Answers each prompt with its last token and on, and tells what it is asked to; keeps how many it does at once."""

    def __init__(self, *, fails_at: int | None = None) -> None:
        super().__init__()
        self.most = self.now = 0
        self.fails_at = fails_at

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        self.asked.append(request)
        self.now += 1
        self.most = max(self.most, self.now)
        told: tuple[Output, ...] = ()
        if request.sampling.prompt_logprobs is not None:
            first, *others = request.prompt
            told = (Output(first), *(Output(token, -0.25, ((token, -0.25),)) for token in others))
        try:
            for number in range(1, request.sampling.max_tokens + 1):
                await asyncio.sleep(0)
                if len(self.asked) == self.fails_at:
                    raise EngineError("it broke")
                reason = "length" if number == request.sampling.max_tokens else None
                yield Output(request.prompt[-1] + number, -0.5, ((5, -0.5),), reason, told)
                told = ()
        finally:
            self.now -= 1


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


async def test_each_prompt_has_its_choices_in_the_order_of_the_prompts(text: Text) -> None:
    engine = Counting()
    api = serve(text, engine, most_running=3)
    prompts = [text.encode(word) for word in ("a", "bc", "d", "e", "f")]
    whole = (await post(api, "/v1/completions", prompt=prompts, max_tokens=2, n=2)).json()
    assert [choice["index"] for choice in whole["choices"]] == list(range(10))
    expected = [text.decode([prompt[-1] + 1, prompt[-1] + 2]) for prompt in prompts for _ in range(2)]
    assert [choice["text"] for choice in whole["choices"]] == expected
    assert whole["usage"] == {"prompt_tokens": 6, "completion_tokens": 20, "total_tokens": 26}
    assert (engine.most, engine.now) == (3, 0)
    words = (await post(api, "/v1/completions", prompt=["a", "bc", "d", "e", "f"], max_tokens=2, n=2)).json()
    assert words["choices"] == whole["choices"]
    stream = await post(
        api, "/v1/completions", prompt=prompts, max_tokens=2, n=2, stream=True, stream_options={"include_usage": True}
    )
    *events, last = events_of(stream)
    assert last["usage"] == whole["usage"]
    texts = [""] * 10
    for event in events:
        assert event["usage"] is None
        [choice] = event["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == expected


async def test_choices_have_seeds_of_their_own_and_the_first_has_the_one_that_was_given(text: Text) -> None:
    engine = Counting()
    api, messages = serve(text, engine), [{"role": "user", "content": "x"}]
    answer = (await post(api, "/v1/chat/completions", messages=messages, n=3, seed=5, max_tokens=1)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    seeds = [request.sampling.seed for request in engine.asked]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3
    await post(api, "/v1/chat/completions", messages=messages, n=2, seed=5, max_tokens=1)
    assert [request.sampling.seed for request in engine.asked[3:]] == seeds[:2]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_models_name_may_have_any_characters(text: Text, stream: bool) -> None:
    engine, name = Scripted(), 'my[]"model"'
    api = serve(text, engine, adapters=(name,))
    answer = await post(api, "/v1/completions", model=name, prompt="a", stream=stream)
    [told] = events_of(answer) if stream else [answer.json()]
    assert (told["model"], len(told["choices"])) == (name, 1)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


class Stuck(Counting):
    """Makes four answers at once, and ends none."""

    def stats(self) -> Stats:
        return Stats(running=min(self.now, 4), waiting=max(self.now - 4, 0))

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        self.now += 1
        try:
            await asyncio.Event().wait()
            yield Output(request.prompt[0])
        finally:
            self.now -= 1


async def test_one_request_with_many_answers_hides_no_others_that_wait(text: Text) -> None:
    """Be they on their way to the engine, or there."""
    arrived = 0

    async def half() -> AsyncGenerator[bytes, None]:
        nonlocal arrived
        yield b'{"model": "tiny", '
        arrived += 1
        await asyncio.Event().wait()

    engine = Stuck()
    api = serve(text, engine, most_running=4, most_waiting=3)
    asked = [asyncio.create_task(post(api, "/v1/completions", prompt="a", n=n)) for n in (4, 1)]
    await until(lambda: engine.now == 5)
    asked += [asyncio.create_task(ask(api, "POST", "/v1/completions", content=half())) for _ in range(2)]
    await until(lambda: arrived == 2)
    refused = await asyncio.wait_for(post(api, "/v1/completions", prompt="a"), 10)
    assert refused.status_code == 429
    asked.pop().cancel()
    asked.append(asyncio.create_task(post(api, "/v1/completions", prompt="a")))
    await until(lambda: engine.now == 6)
    for each in asked:
        each.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


async def test_the_first_event_of_a_stream_comes_with_the_first_token(text: Text) -> None:
    """From one to the other is what clients measure as the time to the first token, `vllm bench serve` among them."""
    go, sent = asyncio.Event(), bytearray()

    class Waiting(Counting):
        async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
            self.asked.append(request)
            await go.wait()
            yield Output(request.prompt[-1], finish_reason="length")

    async def send(message: Any) -> None:
        sent.extend(message.get("body", b""))

    engine = Waiting()
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "stream": True, "n": 2}
    answering = asyncio.create_task(ask_app(serve(text, engine), "/v1/chat/completions", asked, send))
    await until(lambda: len(engine.asked) == 2)
    assert not sent
    go.set()
    await answering
    lines = [line.removeprefix("data: ") for line in sent.decode().split("\n") if line.startswith("data: {")]
    choices = [json.loads(line)["choices"][0] for line in lines]
    for index in range(2):
        roles = [choice["delta"].get("role") for choice in choices if choice["index"] == index]
        assert roles == ["assistant", None, None]


async def test_a_key_makes_a_caller_of_its_own_and_does_not_go_further(text: Text) -> None:
    engine = Counting()
    api = serve(text, engine)
    for key in ("Bearer one", "Bearer other", "Bearer one", None, None):
        headers = {} if key is None else {"Authorization": key}
        body = json.dumps({"model": "tiny", "prompt": "a", "n": 2, "max_tokens": 1}).encode()
        await ask(api, "POST", "/v1/completions", content=body, headers=headers)
    callers = [request.caller for request in engine.asked]
    one, other, nobody = callers[0], callers[2], callers[6]
    assert callers == [one, one, other, other, one, one, *[nobody] * 4]
    assert len({one, other, nobody}) == 3
    assert not any(b"one" in caller for caller in callers)


async def test_a_failure_ends_all_choices(text: Text) -> None:
    engine = Counting(fails_at=2)
    refused = await post(serve(text, engine), "/v1/completions", prompt="a", n=8, max_tokens=50)
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "engine_failed")
    assert engine.now == 0


async def test_too_many_answers_in_one_request_are_refused(text: Text) -> None:
    refused = await post(serve(text, Counting()), "/v1/completions", prompt=["a"] * 1025, n=2)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")


# --- what lm-eval's local-completions sends


@pytest.mark.parametrize("most", [0, 1])
async def test_a_prompts_tokens_are_told_with_their_places(text: Text, most: int) -> None:
    prompts = [text.encode("aß世b"), text.encode("x")]
    asked = {"temperature": 0, "max_tokens": most, "logprobs": 1, "seed": 1234, "echo": True}
    answer = (await post(serve(text, Counting()), "/v1/completions", prompt=prompts, **asked)).json()
    first, second = answer["choices"]
    after = [text.decode([prompt[-1] + 1]) if most else "" for prompt in prompts]
    assert (first["text"], second["text"]) == ("aß世b" + after[0], "x" + after[1])
    assert first["finish_reason"] == "length"
    told = first["logprobs"]
    assert told["tokens"][:5] == ["a", r"bytes:\xc3", r"bytes:\x9f", "世", "b"]
    assert told["text_offset"] == [0, 1, 1, 2, 3, 4][: 5 + most]
    assert told["token_logprobs"] == [None, -0.25, -0.25, -0.25, -0.25, *[-0.5] * most]
    assert told["top_logprobs"][:2] == [None, {r"bytes:\xc3": -0.25}]
    assert second["logprobs"]["token_logprobs"] == [None, *[-0.5] * most]
    assert answer["usage"]["completion_tokens"] == 2 * most


async def test_a_prompt_too_long_to_be_scored_is_told_how_long_it_may_be(text: Text) -> None:
    engine = Counting()
    api, asked = serve(text, engine), {"max_tokens": 0, "logprobs": 1, "echo": True}
    refused = await post(api, "/v1/completions", prompt=[65] * engine.max_length, **asked)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    message = refused.json()["error"]["message"]
    assert f"a prompt has at most {engine.max_length - 1} here" in message
    assert f"this one has {engine.max_length}; make it shorter" in message
    assert (await post(api, "/v1/completions", prompt=[65] * (engine.max_length - 1), **asked)).status_code == 200


async def test_a_stream_tells_a_prompts_tokens_too(text: Text) -> None:
    asked = {"prompt": "ab", "max_tokens": 2, "logprobs": 0, "echo": True}
    [whole] = (await post(serve(text, Counting()), "/v1/completions", **asked)).json()["choices"]
    events = events_of(await post(serve(text, Counting()), "/v1/completions", stream=True, **asked))
    choices = [event["choices"][0] for event in events]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [each for choice in choices for each in choice["logprobs"][name]] == whole["logprobs"][name]


async def test_a_stop_token_is_told_of_in_completions_and_has_no_text(text: Text) -> None:
    """lm-eval leaves out the last of the tokens that are told, which has to be the answer's and not the prompt's."""
    [stop] = text.encode("z")
    api = serve(text, Scripted([Output(stop, -0.1, (), "stop", (Output(5), Output(6, -0.2, ((6, -0.2),))))]))
    asked = {"max_tokens": 1, "logprobs": 1, "echo": True}
    [choice] = (await post(api, "/v1/completions", prompt="ab", **asked)).json()["choices"]
    assert choice["text"] == "ab"
    assert choice["logprobs"]["token_logprobs"] == [None, -0.2, -0.1]
    chat = {"messages": [{"role": "user", "content": "x"}], "logprobs": True}
    [choice] = (await post(api, "/v1/chat/completions", **chat)).json()["choices"]
    assert choice["logprobs"]["content"] == []


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_tokens_without_text_are_not_kept_until_there_is_some(text: Text, path: str) -> None:
    """There may never be, in an endless answer."""
    [letter] = text.encode("z")
    outputs = [*[Output(max(text.shown) + 1, -1.0)] * 1000, Output(letter, -2.0, (), "length")]
    request = Request((65,), Sampling(len(outputs)))
    engine = Scripted(outputs)
    answers = Answers(engine, text, Metrics(CollectorRegistry(), engine.stats))
    pieces = [piece async for piece in answers.generate(request, [], lambda: None)]
    assert max(len(piece.outputs) for piece in pieces) < 300
    assert [output for piece in pieces for output in piece.outputs] == outputs
    asked = {"prompt": "a", "logprobs": 0} if path == "/v1/completions" else {"logprobs": True}
    asked |= {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {}
    for stream in (False, True):
        answer = await post(serve(text, Scripted(outputs)), path, stream=stream, **asked)
        choices = [event["choices"][0] for event in (events_of(answer) if stream else [answer.json()])]
        told = [choice["logprobs"] for choice in choices if choice["logprobs"]]
        values = [each.get("token_logprobs") or [token["logprob"] for token in each["content"]] for each in told]
        assert [value for each in values for value in each] == [output.logprob for output in outputs]
        parts = [choice.get("delta") or choice.get("message") or choice for choice in choices]
        assert "".join(part.get("text") or part.get("content") or "" for part in parts) == "z"


async def test_no_stop_string_ends_an_answer_before_its_least_tokens(text: Text) -> None:
    api = serve(text, Scripted(told(text, "abcabc")))
    for least, shown in ((0, "a"), (1, "a"), (2, "abca"), (4, "abca"), (5, "abcabc")):
        asked = {"prompt": "x", "stop": "b", "min_tokens": least}
        [choice] = (await post(api, "/v1/completions", **asked)).json()["choices"]
        assert choice["text"] == shown, least
    [choice] = (await post(api, "/v1/completions", prompt="x", stop="bca", min_tokens=3)).json()["choices"]
    assert choice["text"] == "a"


async def test_stop_tokens_are_those_that_are_asked_for(text: Text) -> None:
    engine = Counting()
    api = serve(text, engine)
    await post(api, "/v1/completions", prompt="a", stop_token_ids=[7])
    await post(api, "/v1/completions", prompt="a", stop_token_ids=[7], ignore_eos=True)
    assert [request.sampling.stop_tokens for request in engine.asked] == [text.stop_tokens | {7}, {7}]


@pytest.mark.parametrize("top_k", [None, 0, 7])
async def test_of_no_share_of_the_probability_the_likeliest_token_is_left(text: Text, top_k: int | None) -> None:
    """OpenAI takes a `top_p` of 0, which some clients have by default, and engines do not."""
    engine = Counting()
    answer = await post(serve(text, engine), "/v1/completions", prompt="a", top_p=0, top_k=top_k)
    assert answer.status_code == 200, answer.text
    [request] = engine.asked
    assert (request.sampling.top_p, request.sampling.top_k) == (1.0, 1)


async def test_a_stop_token_of_the_files_that_the_model_has_not_is_left_out(
    text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank has no logit of it to ban."""
    monkeypatch.setattr(text, "stop_tokens", frozenset({-1, 2, 300}))
    engine = Counting()
    await post(serve(text, engine), "/v1/completions", prompt="a", min_tokens=1)
    assert engine.asked[0].sampling.stop_tokens == {2}


async def test_a_request_that_leaves_no_token_to_choose_is_refused(text: Text) -> None:
    engine = Counting()
    api, asked = serve(text, engine), {"prompt": "a", "stop_token_ids": list(range(300)), "min_p": 0.1}
    refused = await post(api, "/v1/completions", min_tokens=1, **asked)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stop_token_ids")
    assert "write fewer, or min_tokens: 0" in refused.json()["error"]["message"]
    assert not engine.asked
    assert (await post(api, "/v1/completions", min_tokens=0, **asked)).status_code == 200
    asked["stop_token_ids"] = list(range(299))
    assert (await post(api, "/v1/completions", min_tokens=1, **asked)).status_code == 200


# --- browsers, ids and the log


async def test_pages_of_an_origin_may_ask_where_the_manifest_says_so(text: Text) -> None:
    asked = {"origin": "https://chat.example.com", "access-control-request-method": "POST",
             "access-control-request-headers": "authorization,content-type"}  # fmt: skip
    api = serve(text, Scripted(), cors=("https://chat.example.com",), most_waiting=0)
    allowed = await ask(api, "OPTIONS", "/v1/chat/completions", headers=asked)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://chat.example.com"
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    refused = await ask(api, "OPTIONS", "/v1/chat/completions", headers=asked | {"origin": "https://other.example.com"})
    assert "access-control-allow-origin" not in refused.headers
    full = await ask(api, "POST", "/v1/completions", headers={"origin": asked["origin"]}, content=b"{}")
    assert (full.status_code, full.headers["access-control-allow-origin"]) == (429, asked["origin"])
    assert "x-request-id" in full.headers["access-control-expose-headers"].lower()
    everyone = await ask(serve(text, Scripted(), cors=("*",)), "GET", "/health", headers={"origin": "null"})
    assert everyone.headers["access-control-allow-origin"] == "*"
    without = await ask(serve(text, Scripted()), "OPTIONS", "/v1/chat/completions", headers=asked)
    assert without.status_code == 405
    assert "access-control-allow-origin" not in without.headers


async def test_a_request_has_an_id_and_a_line_without_what_was_asked(
    text: Text, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "arctic_workers.inference.http.access")
    api, body = serve(text, Counting()), json.dumps({"model": "tiny", "prompt": "secret", "max_tokens": 2}).encode()
    given = await ask(api, "POST", "/v1/completions", content=body, headers={"x-request-id": "mine-1"})
    made = [
        await ask(api, "POST", "/v1/completions", content=body, headers={"x-request-id": bad}) for bad in ("a b", "")
    ]
    assert given.headers["x-request-id"] == "mine-1"
    assert len({answer.headers["x-request-id"] for answer in made} | {"mine-1"}) == 3
    await get(api, "/wings%0aof")
    lines = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(r"POST /v1/completions 200, 6 \+ 2 tokens, \d+\.\d{3} s, id mine-1", lines[0])
    assert lines[-1].startswith("GET /wings%0aof 404, 0 + 0 tokens")
    assert not any("secret" in line for line in lines)


async def test_a_path_with_a_slash_behind_it_is_refused_as_others_are(text: Text) -> None:
    """Behind a redirect a client may ask again without its body."""
    refused = await post(serve(text, Scripted()), "/v1/completions/", prompt="a")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_url")


async def test_what_a_refusal_says_of_a_request_is_short(text: Text) -> None:
    api = serve(text, Scripted())
    for path, asked in (
        ("/v1/completions", {"model": "m" * 100_000, "prompt": "a"}),
        ("/v1/completions", {"prompt": [int("9" * 4300)]}),
        ("/v1/completions", {"prompt": "a", "logit_bias": {"9" * 4300: 1}}),
        ("/" + "m" * 10_000, {}),
    ):
        refused = await post(api, path, **asked)
        assert refused.status_code in (400, 404)
        assert len(refused.content) < 1000


async def test_a_tokenizer_tells_of_itself(folder: Path) -> None:
    """lm-eval takes the tokenizer that it needs from here."""
    config = {"eos_token": {"content": "z"}, "chat_template": "{{ messages }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    told = (await get(serve(Text(folder), Scripted()), "/tokenizer_info")).json()
    assert told == {
        "bos_token": None, "eos_token": "z", "unk_token": None, "pad_token": None, "chat_template": "{{ messages }}"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("length", "stream", "most"),
    [
        (256, False, 256),
        (256, True, 256),
        (10**9, False, server.MOST_WHOLE),
        (10**9, True, 10**9),
        (UNLIMITED, False, 4096),
        (UNLIMITED, True, UNLIMITED),
    ],
)
async def test_a_chat_that_names_no_end_has_one_unless_it_streams_without_a_bound(
    text: Text, length: int, stream: bool, most: int
) -> None:
    engine = Scripted()
    engine.max_length = length
    asked = {"messages": [{"role": "user", "content": "a"}], "stream": stream}
    answer = await post(serve(text, engine), "/v1/chat/completions", **asked)
    assert answer.status_code == 200, answer.text
    [request] = engine.asked
    prompt = len(request.prompt)
    assert request.sampling.max_tokens == min(most, length - prompt)


@pytest.mark.parametrize("length", [UNLIMITED, 10**9])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_an_answer_in_one_piece_has_a_bound_however_long_requests_may_be(
    text: Text, path: str, length: int
) -> None:
    """It is kept until it is whole."""
    engine = Scripted()
    engine.max_length = length
    api, prompt = serve(text, engine), {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}
    name = "messages" if "chat" in path else "prompt"

    async def ask_for(most: int, *, stream: bool = False) -> httpx.Response:
        return await post(api, path, max_tokens=most, stream=stream, **{name: prompt[name]})

    refused = await ask_for(server.MOST_WHOLE + 1)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")
    assert f"write at most {server.MOST_WHOLE}, or stream: true" in refused.json()["error"]["message"]
    assert not engine.asked
    assert (await ask_for(server.MOST_WHOLE)).status_code == 200
    assert (await ask_for(10**8, stream=True)).status_code == 200


@pytest.mark.parametrize("waiting", [0, 8])
async def test_nothing_looks_after_an_answer_that_is_over(
    text: Text, monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    """Be it a refusal or not."""
    monkeypatch.setattr(server, "UNREAD_SECONDS", 0.2)
    looks: list[object] = []
    monkeypatch.setattr(server._Patience, "_look", lambda patience: looks.append(patience))
    answer = await post(serve(text, Scripted(), most_waiting=waiting), "/v1/completions", prompt="a")
    assert answer.status_code == (200 if waiting else 429)
    looks.clear()  # a busy machine may have taken longer to answer
    await asyncio.sleep(0.4)
    assert looks == []


async def test_an_answer_that_its_client_does_not_read_is_given_up(text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "UNREAD_SECONDS", 0.05)
    engine = Counting()

    async def send(message: Any) -> None:
        if message.get("body"):
            await asyncio.sleep(3600)

    asked = {"model": "tiny", "prompt": "a", "max_tokens": 200, "stream": True}
    await ask_app(serve(text, engine), "/v1/completions", asked, send)
    assert (len(engine.asked), engine.now) == (1, 0)
