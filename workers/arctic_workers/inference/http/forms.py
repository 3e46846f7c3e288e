"""The OpenAI API's answers as JSON: one class for each of the two endpoints, for whole answers and for streams."""

import codecs
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from arctic_workers.inference.engine import Output
from arctic_workers.inference.http.answer import Piece
from arctic_workers.inference.http.text import Text


def usage(prompt: int, generated: int) -> dict[str, int]:
    """Return the usage object."""
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


class Form(Protocol):
    """How one endpoint writes an answer."""

    def opening(self) -> list[dict[str, Any]]:
        """Return the choices that a stream begins with, one an event."""
        ...

    def events(self, piece: Piece) -> list[dict[str, Any]]:
        """Return a piece as choices of a stream, one an event."""
        ...

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Return the choice of a whole answer."""
        ...

    def envelope(self, choices: list[dict[str, Any]], *, streamed: bool) -> dict[str, Any]:
        """Return the object around choices."""
        ...


class _Envelope:
    """Identity of an answer, the same in all its events."""

    def __init__(self, model: str, prefix: str, whole: str, streamed: str) -> None:
        self._base = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._objects = {False: whole, True: streamed}

    def envelope(self, choices: list[dict[str, Any]], *, streamed: bool) -> dict[str, Any]:
        """See `Form`."""
        return {**self._base, "object": self._objects[streamed], "choices": choices}


class CompletionForm(_Envelope):
    """`POST /v1/completions`; `echo` is the prompt's text where it is asked for."""

    def __init__(self, model: str, text: Text, *, logprobs: bool, echo: str) -> None:
        super().__init__(model, "cmpl", "text_completion", "text_completion")
        self._text = text
        self._logprobs = logprobs
        self._echo = echo
        self._offset = len(echo)
        # Of the text so far: tokens may be parts of characters.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def opening(self) -> list[dict[str, Any]]:
        """See `Form`."""
        return [self._choice(self._echo, (), None)] if self._echo else []

    def events(self, piece: Piece) -> list[dict[str, Any]]:
        """See `Form`."""
        return [self._choice(piece.text, piece.outputs, piece.finish_reason)]

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """See `Form`."""
        outputs = [output for piece in pieces for output in piece.outputs]
        text = self._echo + "".join(piece.text for piece in pieces)
        return self._choice(text, outputs, pieces[-1].finish_reason)

    def _choice(self, text: str, outputs: Sequence[Output], reason: str | None) -> dict[str, Any]:
        logprobs = self._some_logprobs(outputs) if self._logprobs else None
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _some_logprobs(self, outputs: Sequence[Output]) -> dict[str, Any]:
        raw = [self._text.token_bytes(output.token) for output in outputs]
        offsets = []
        for token in raw:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(token))
        tops = [_by_name((self._text.token_bytes(token), value) for token, value in output.top) for output in outputs]
        return {
            "tokens": [_name(token) for token in raw],
            "token_logprobs": [output.logprob for output in outputs],
            "top_logprobs": tops,
            "text_offset": offsets,
        }


def _by_name(values: Iterable[tuple[bytes, float]]) -> dict[str, float]:
    """Two tokens may have one text (a byte of its own, and the character): the less likely goes by its bytes."""
    named: dict[str, float] = {}
    for token, value in values:
        name = _name(token)
        named.setdefault(_escaped(token) if name in named else name, value)
    return named


def _name(token: bytes) -> str:
    """A token's text, or its bytes where they are no text."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return _escaped(token)


def _escaped(token: bytes) -> str:
    """As OpenAI writes it."""
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


class ChatForm(_Envelope):
    """`POST /v1/chat/completions`."""

    def __init__(self, model: str, text: Text, *, logprobs: bool) -> None:
        super().__init__(model, "chatcmpl", "chat.completion", "chat.completion.chunk")
        self._text = text
        self._logprobs = logprobs

    def opening(self) -> list[dict[str, Any]]:
        """See `Form`."""
        return [self._event({"role": "assistant", "content": ""}, None, None)]

    def events(self, piece: Piece) -> list[dict[str, Any]]:
        """See `Form`: the reason comes in an event of its own, as OpenAI does it."""
        events = []
        if piece.text or piece.outputs:
            events.append(self._event({"content": piece.text}, self._some_logprobs(piece.outputs), None))
        if piece.finish_reason:
            events.append(self._event({}, None, piece.finish_reason))
        return events

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """See `Form`."""
        message = {"role": "assistant", "content": "".join(piece.text for piece in pieces), "refusal": None}
        outputs = [output for piece in pieces for output in piece.outputs]
        return {
            "index": 0,
            "message": message,
            "logprobs": self._some_logprobs(outputs),
            "finish_reason": pieces[-1].finish_reason,
        }

    def _event(self, delta: dict[str, str], logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _some_logprobs(self, outputs: Sequence[Output]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        return {
            "content": [
                self._token(output.token, output.logprob) | {"top_logprobs": [self._token(*top) for top in output.top]}
                for output in outputs
            ],
            "refusal": None,
        }

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        raw = self._text.token_bytes(token)
        return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}
