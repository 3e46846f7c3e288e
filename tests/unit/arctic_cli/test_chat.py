"""What `arctic chat` makes of a streamed answer."""

import click
import pytest

from arctic_cli.chat import pieces


def test_an_answer_is_its_pieces_and_nothing_of_the_protocol() -> None:
    lines = [
        'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}',
        "",
        'data: {"choices": [{"index": 0, "delta": {"content": "Two"}}]}',
        ": a comment",
        'data: {"choices": [{"index": 0, "delta": {"content": " words"}, "finish_reason": "stop"}]}',
        'data: {"choices": [], "usage": {"total_tokens": 3}}',
        "data: [DONE]",
    ]
    assert "".join(pieces(lines)) == "Two words"


def test_an_error_within_a_stream_is_a_sentence() -> None:
    with pytest.raises(click.ClickException, match="The engine failed"):
        list(pieces(['data: {"error": {"message": "The engine failed."}}']))
