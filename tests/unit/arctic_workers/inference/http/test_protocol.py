"""What the API takes, and how it names what it does not."""

import codecs
import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from arctic_workers.inference.http.protocol import (
    ApiError,
    ChatRequest,
    CommonRequest,
    CompletionRequest,
    TokenizeRequest,
    parse,
)

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "m", "prompt": "hi"}


@pytest.mark.parametrize(
    ("change", "param", "sentence"),
    [
        ({"n": 129}, "n", "less than or equal to 128"),
        ({"best_of": 3}, "best_of", "leave it out or write 1, as many as 'n'"),
        ({"n": 2, "best_of": 3}, "best_of", "leave it out or write 2"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "less than or equal to 2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater than or equal to 0.01"),
        ({"min_p": 1.5}, "min_p", "less than or equal to 1"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "less than or equal to 100"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a", "valid integer"),
        ({"logit_bias": dict.fromkeys(range(1025), 1)}, "logit_bias", "write at most 1024"),
        ({"stop_token_ids": list(range(1025))}, "stop_token_ids", "1025 tokens are too many; write at most 1024"),
        ({"min_tokens": -1}, "min_tokens", "greater than or equal to 0"),
        ({"use_beam_search": True}, "use_beam_search", "not supported; leave it out or write False"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"top_p": -0.1}, "top_p", "greater than or equal to 0"),
        ({"stop": ["a"] * 33}, "stop", "write at most 32"),
        ({"stop": ["a" * 257]}, "stop", "at most 256 characters"),
        ({"wings": 2}, "wings", "there is no such parameter"),
        ({"prompt": {"a": 1}}, "prompt", "valid"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"logprobs": True}, "logprobs", "write how many of the likeliest tokens to tell of, 0 to 20; null is none"),
        ({"wings[]": 2}, "wings[]", "there is no such parameter"),
        ({"str": 2}, "str", "there is no such parameter"),
        ({"max_tokens": int("9" * 4300)}, "max_tokens", "less than"),
        ({"min_tokens": 2**63}, "min_tokens", "less than"),
        ({"model": None}, "model", "required"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"stream_options": {"include_usage": True}}, None, "'stream_options' needs 'stream': true"),
    ],
)
def test_a_parameter_that_cannot_be_done_is_named(change: dict[str, Any], param: str | None, sentence: str) -> None:
    with pytest.raises(ApiError, match=sentence) as caught:
        parse(CompletionRequest, json.dumps(COMPLETION | change).encode())
    assert caught.value.status == 400
    assert caught.value.body()["error"]["type"] == "invalid_request_error"
    assert caught.value.param == param


@pytest.mark.parametrize(
    "change",
    [
        {"w" * 100_000: 1},
        {"logit_bias": {"w" * 100_000: 1}},
        {"messages": [{"role": "user", "content": [{"type": "w" * 100_000, "text": ""}]}]},
    ],
)
def test_what_is_sent_back_of_a_wrong_request_is_short(change: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        parse(ChatRequest, json.dumps(CHAT | change).encode())
    assert "www" in caught.value.message
    assert len(json.dumps(caught.value.body())) < 1000


@pytest.mark.parametrize(
    ("kind", "whole", "faulty"),
    [
        (ChatRequest, CHAT, lambda many: {"messages": [{}] * many}),
        (ChatRequest, CHAT, lambda many: {"messages": [{"role": "user", "content": [{}] * many}]}),
        (CompletionRequest, COMPLETION, lambda many: {"prompt": [{}] * many}),
        (CompletionRequest, COMPLETION, lambda many: {"prompt": [[{}] * many]}),
        (CompletionRequest, COMPLETION, lambda many: {"stop": [{}] * many}),
    ],
)
def test_faults_are_looked_for_until_one_is_found(
    kind: type[CommonRequest], whole: dict[str, Any], faulty: Callable[[int], dict[str, Any]]
) -> None:
    """A body has room for a million, which would take seconds in which all else stops."""

    def found(many: int) -> int:
        with pytest.raises(ValidationError) as caught:
            kind.model_validate(whole | faulty(many))
        return caught.value.error_count()

    assert found(1000) == found(1)


def test_values_that_change_nothing_are_taken() -> None:
    neutral = {"n": 1, "best_of": 1, "logit_bias": {}, "user": "me", "tools": None, "stop": None, "length_penalty": 1.0}
    unknown = {"echo_reasoning": False, "mm_processor_kwargs": {}, "guided_json": None, "suffix_ids": [], "grammar": ""}
    assert parse(CompletionRequest, json.dumps(COMPLETION | neutral | unknown).encode()).prompt == "hi"
    for stop, stops in (("", []), ([""], []), (["", "a"], ["a"])):
        assert parse(CompletionRequest, json.dumps(COMPLETION | {"stop": stop}).encode()).stops == stops
    assert parse(ChatRequest, json.dumps(CHAT | {"response_format": {"type": "text"}}).encode()).model == "m"


def test_what_only_saves_time_is_taken() -> None:
    """As editors send what they expect of an answer."""
    saving = {"prediction": {"type": "content", "content": "a"}, "prompt_cache_options": {"ttl": "30m"}}
    assert parse(ChatRequest, json.dumps(CHAT | saving).encode()).model == "m"


def test_null_is_what_is_left_out() -> None:
    nothing = {"add_generation_prompt": None, "continue_final_message": None, "stream_options": None, "stop": None}
    chat = parse(ChatRequest, json.dumps(CHAT | nothing).encode())
    assert (chat.add_generation_prompt, chat.continue_final_message) == (True, False)
    asked = {"stream": True, "stream_options": {"include_usage": None}, "logprobs": False}
    completion = parse(CompletionRequest, json.dumps(COMPLETION | asked).encode())
    assert (completion.includes_usage, completion.logprobs) == (False, None)
    assert parse(TokenizeRequest, b'{"prompt": "a", "add_special_tokens": null}').adds_special is True


@pytest.mark.parametrize(
    ("choice", "param", "sentence"),
    [
        ({}, "tools", "'tools' is not supported but with 'tool_choice': 'none'"),
        ({"tool_choice": "auto"}, "tools", "'tools' is not supported but with 'tool_choice': 'none'"),
        ({"tool_choice": "required"}, "tool_choice", "not supported; leave it out or write 'none'"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "not supported"),
    ],
)
def test_tools_that_may_be_called_are_refused(choice: dict[str, Any], param: str, sentence: str) -> None:
    asked = CHAT | {"tools": [{"type": "function", "function": {"name": "f"}}]} | choice
    with pytest.raises(ApiError, match=sentence) as caught:
        parse(ChatRequest, json.dumps(asked).encode())
    assert (caught.value.param, caught.value.code) == (param, "unsupported_parameter")


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}, {"tool_choice": "none"}, {"tool_choice": None}])
def test_no_tools_are_asked_for_by_any_choice_that_may_call_none(choice: dict[str, Any]) -> None:
    for tools in ({}, {"tools": []}, {"tools": None}):
        assert not parse(ChatRequest, json.dumps(CHAT | tools | choice).encode()).tools


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "42", "tool_call_id": "a"},
        {"role": "assistant", "content": "hi", "extra": [None, {"a": None}], "flag": False},
        {"role": "user", "content": "hi", "name": "ann"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ],
)
def test_histories_go_to_the_template_as_clients_keep_them(message: dict[str, Any]) -> None:
    request = parse(ChatRequest, json.dumps(CHAT | {"messages": [message]}).encode())
    assert request.messages[0].plain() == message


@pytest.mark.parametrize("content", [{}, {"content": None}])
def test_a_template_sees_no_null_of_a_message(content: dict[str, Any]) -> None:
    """Templates ask whether there are `tool_calls`, and put `content` together with other text."""
    nothing = {"refusal": None, "function_call": None, "audio": None, "name": None}
    message = {"role": "assistant", "tool_calls": [CALL]} | nothing | content
    answer = {"role": "assistant", "content": "hi", "tool_calls": None} | nothing
    request = parse(ChatRequest, json.dumps(CHAT | {"messages": [message, answer]}).encode())
    assert [each.plain() for each in request.messages] == [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "assistant", "content": "hi"},
    ]


def test_what_an_assistant_refused_with_is_text() -> None:
    """OpenAI's own answers have such parts, and clients send them back."""
    parts = [{"type": "text", "text": "Well: "}, {"type": "refusal", "refusal": "no"}]
    request = parse(ChatRequest, json.dumps(CHAT | {"messages": [{"role": "assistant", "content": parts}]}).encode())
    said = [{"type": "text", "text": "Well: "}, {"type": "text", "text": "no"}]
    assert request.messages[0].plain() == {"role": "assistant", "content": said}


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.mark.parametrize(
    ("message", "param", "sentence"),
    [
        ({"role": "user", "content": [IMAGE]}, "messages.0.content.0.type", "image_url can't be read"),
        ({"role": "assistant", "content": [{"type": "refusal"}]}, "messages.0.content.0.type", "refusal can't be read"),
        ({"role": "user"}, "messages.0", "content is missing"),
        ({"role": "tool", "content": None}, "messages.0", "content is missing"),
        ({"role": "user", "content": 5}, "messages.0.content", "valid"),
        ({"role": "user", "content": ["a"]}, "messages.0.content.0", "should be an object"),
        ("a", "messages.0", "should be an object"),
    ],
)
def test_a_message_that_cannot_be_read_is_refused(message: Any, param: str, sentence: str) -> None:
    with pytest.raises(ApiError, match=sentence) as caught:
        parse(ChatRequest, json.dumps(CHAT | {"messages": [message]}).encode())
    assert (caught.value.status, caught.value.param) == (400, param)


def test_a_mark_of_the_byte_order_is_no_part_of_a_body() -> None:
    """Editors on Windows write one before what they save in UTF-8."""
    assert parse(ChatRequest, codecs.BOM_UTF8 + json.dumps(CHAT).encode()).model == "m"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model": "m"}', b"\xff"])
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse(ChatRequest, body)
    assert caught.value.status == 400
