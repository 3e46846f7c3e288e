"""The OpenAI API's answers as JSON: one class for each of the two endpoints, for whole answers and for streams."""

import math
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from pydantic_core import to_json

from arctic_workers.inference.engine import Output
from arctic_workers.inference.http.answer import Piece
from arctic_workers.inference.http.text import Detokenizer, Text

LEAST_LOGPROB = -9999.0
"""What OpenAI tells of a token that is very unlikely: JSON has no infinity."""


def usage(prompt: int, generated: int) -> dict[str, int]:
    """Return the usage object."""
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def event(data: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    return b"data: " + to_json(data) + b"\n\n"


class Envelope:
    """What is around choices: an answer's identity, the same in all its events."""

    def __init__(self, model: str, prefix: str, whole: str, streamed: str) -> None:
        self._base = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._whole, self._streamed = whole, streamed
        self._before = self._after = b""

    @property
    def id(self) -> str:
        """The answer's."""
        return str(self._base["id"])

    def whole(self, choices: Iterable[dict[str, Any]], counts: dict[str, int]) -> bytes:
        """Return a whole answer with its usage. Choice by choice: while JSON is written no other thread has a turn."""
        around = to_json({**self._base, "object": self._whole, "choices": [], "usage": counts})
        before, after = around.rsplit(b"[]", 1)
        return before + b"[" + b",".join([to_json(choice) for choice in choices]) + b"]" + after

    def events(self, choices: Sequence[dict[str, Any]], *, has_usage: bool) -> bytes:
        """Return choices of a stream, one an event; where usage is asked for, all have its key, as with OpenAI."""
        if not self._before:
            frame = event(self.part([], {"usage": None} if has_usage else {}))
            self._before, self._after = frame.rsplit(b"[]", 1)  # choices come last
        return b"".join([self._before + b"[" + to_json(choice) + b"]" + self._after for choice in choices])

    def part(self, choices: list[dict[str, Any]], extra: dict[str, Any]) -> dict[str, Any]:
        """Return an event of a stream."""
        return {**self._base, "object": self._streamed, **extra, "choices": choices}


class Form(Protocol):
    """How one endpoint writes one choice of an answer."""

    def events(self, piece: Piece) -> list[dict[str, Any]]:
        """Return a piece as parts of a stream, an event each."""
        ...

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Return the whole choice."""
        ...


class CompletionForm:
    """A choice of `POST /v1/completions`. An answer that nobody asked for, with `max_tokens` 0, is left out."""

    def __init__(
        self, text: Text, index: int, prompt: Sequence[int], *, logprobs: bool, echo: str | None, answers: bool
    ) -> None:
        """`echo` is the prompt's text, where it is told."""
        self._text = text
        self._index = index
        self._answers = answers
        self._echo = echo or ""
        self._tells_prompt = echo is not None
        # Tokens may be parts of characters, or have a text of their own only at the beginning.
        self._places = Detokenizer(text, () if self._tells_prompt else prompt) if logprobs else None
        self._offset = 0

    def events(self, piece: Piece) -> list[dict[str, Any]]:
        """See `Form`: the prompt comes with the first piece, which knows its probabilities."""
        return [self._choice(piece.text, piece.outputs, piece.finish_reason)]

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """See `Form`."""
        outputs = [output for piece in pieces for output in piece.outputs]
        return self._choice("".join([piece.text for piece in pieces]), outputs, pieces[-1].finish_reason)

    def _choice(self, text: str, outputs: Sequence[Output], reason: str | None) -> dict[str, Any]:
        told = outputs[0].prompt if outputs and self._tells_prompt else ()
        if not self._answers:
            text, outputs, reason = "", (), "length"
        if self._echo:
            text, self._echo = self._echo + text, ""
        logprobs = self._some_logprobs((*told, *outputs), self._places) if self._places else None
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _some_logprobs(self, outputs: Sequence[Output], places: Detokenizer) -> dict[str, Any]:
        raw = [self._text.token_bytes(output.token) for output in outputs]
        offsets = []
        for output in outputs:
            offsets.append(self._offset)
            self._offset += len(places.push(output.token))
        return {
            "tokens": [_name(token) for token in raw],
            "token_logprobs": [_shown(output.logprob) for output in outputs],
            "top_logprobs": [self._top(output) for output in outputs],
            "text_offset": offsets,
        }

    def _top(self, output: Output) -> dict[str, float | None] | None:
        """The likeliest, and the chosen one where it is none of them, as with OpenAI; none where none are asked for.

        Of a prompt's first token nothing is told.
        """
        if output.logprob is None:
            return None
        told = output.top
        if told and all(token != output.token for token, _ in told):
            told = (*told, (output.token, output.logprob))
        return _by_name((self._text.token_bytes(token), value) for token, value in told)


def _by_name(values: Iterable[tuple[bytes, float]]) -> dict[str, float | None]:
    """Two tokens may have one text (a byte of its own, and the character): the less likely goes by its bytes."""
    named: dict[str, float | None] = {}
    for token, value in values:
        name = _name(token)
        named.setdefault(_escaped(token) if name in named else name, _shown(value))
    return named


def _shown(logprob: float | None) -> float | None:
    """A logprob as JSON can tell it: nothing where the model computed no number."""
    return None if logprob is None or math.isnan(logprob) else max(logprob, LEAST_LOGPROB)


def _name(token: bytes) -> str:
    """A token's text, or its bytes where they are no text."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return _escaped(token)


def _escaped(token: bytes) -> str:
    """As OpenAI writes it."""
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


class ChatForm:
    """A choice of `POST /v1/chat/completions`. A stop token is not told of, as with OpenAI."""

    def __init__(self, text: Text, index: int, *, logprobs: bool) -> None:
        self._text = text
        self._index = index
        self._logprobs = logprobs
        self._told_role = False

    def events(self, piece: Piece) -> list[dict[str, Any]]:
        """See `Form`: role and reason come in events of their own, as OpenAI does it.

        The role comes with the first piece: clients take the first event for the first token.
        """
        events = [] if self._told_role else [self._event({"role": "assistant", "content": ""}, None, None)]
        self._told_role = True
        if piece.text or (self._logprobs and _with_text(piece.outputs)):
            events.append(self._event({"content": piece.text}, self._some_logprobs(piece.outputs), None))
        if piece.finish_reason:
            events.append(self._event({}, None, piece.finish_reason))
        return events

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """See `Form`."""
        message = {"role": "assistant", "content": "".join([piece.text for piece in pieces]), "refusal": None}
        outputs = [output for piece in pieces for output in piece.outputs]
        return {
            "index": self._index,
            "message": message,
            "logprobs": self._some_logprobs(outputs),
            "finish_reason": pieces[-1].finish_reason,
        }

    def _event(self, delta: dict[str, str], logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _some_logprobs(self, outputs: Sequence[Output]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        return {
            "content": [
                self._token(output.token, output.logprob) | {"top_logprobs": [self._token(*top) for top in output.top]}
                for output in _with_text(outputs)
            ],
            "refusal": None,
        }

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        raw = self._text.token_bytes(token)
        return {"token": raw.decode(errors="replace"), "logprob": _shown(logprob), "bytes": list(raw)}


def _with_text(outputs: Sequence[Output]) -> list[Output]:
    return [output for output in outputs if output.finish_reason != "stop"]
