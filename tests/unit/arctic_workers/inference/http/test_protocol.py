"""What the API takes, and how it names what it does not."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from arctic_workers.inference.http.protocol import ApiError, ChatRequest, CommonRequest, CompletionRequest, parse

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
        ({"min_tokens": -1}, "min_tokens", "greater than or equal to 0"),
        ({"use_beam_search": True}, "use_beam_search", "not supported; leave it out or write False"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"stop": ["a"] * 33}, "stop", "write at most 32"),
        ({"stop": [""]}, "stop", "1 to 256 characters"),
        ({"wings": 2}, "wings", "there is no such parameter"),
        ({"prompt": {"a": 1}}, "prompt", "valid"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
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
    assert parse(CompletionRequest, json.dumps(COMPLETION | {"stop": ""}).encode()).stops == []
    assert parse(ChatRequest, json.dumps(CHAT | {"response_format": {"type": "text"}}).encode()).model == "m"


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "42", "tool_call_id": "a"},
        {"role": "assistant", "content": "hi", "refusal": None, "tool_calls": None, "function_call": None},
        {"role": "user", "content": "hi", "name": "ann"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ],
)
def test_histories_go_to_the_template_as_clients_keep_them(message: dict[str, Any]) -> None:
    request = parse(ChatRequest, json.dumps(CHAT | {"messages": [message]}).encode())
    assert request.messages[0].plain() == message


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.mark.parametrize(
    ("message", "param", "sentence"),
    [
        ({"role": "user", "content": [IMAGE]}, "messages.0.content.0.type", "image_url can't be read"),
        ({"role": "user"}, "messages.0", "content is missing"),
        ({"role": "tool", "content": None}, "messages.0", "content is missing"),
        ({"role": "user", "content": 5}, "messages.0.content", "valid"),
    ],
)
def test_a_message_that_cannot_be_read_is_refused(message: dict[str, Any], param: str, sentence: str) -> None:
    with pytest.raises(ApiError, match=sentence) as caught:
        parse(ChatRequest, json.dumps(CHAT | {"messages": [message]}).encode())
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model": "m"}', b"\xff"])
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse(ChatRequest, body)
    assert caught.value.status == 400
