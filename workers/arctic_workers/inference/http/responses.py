"""The ways in which answers leave: whole, or as a stream of server-sent events."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from arctic_workers.inference.engine import EngineError
from arctic_workers.inference.http.access import count_tokens
from arctic_workers.inference.http.answer import Piece
from arctic_workers.inference.http.beside import beside_others
from arctic_workers.inference.http.forms import Envelope, Form, event, usage
from arctic_workers.inference.http.protocol import ApiError


@dataclass(frozen=True)
class Answer:
    """What a request is answered with: its choices are made side by side."""

    envelope: Envelope
    forms: Sequence[Form]
    """A choice each."""
    pieces: AsyncGenerator[tuple[int, Piece], None]
    """With the number of the choice that each is of."""
    prompt: int
    """Tokens of the prompts."""
    asks_nothing: bool = False
    """Whether no token of an answer is wanted."""

    def usage(self, generated: Sequence[int]) -> dict[str, int]:
        """Return the usage, with so many tokens generated for each choice."""
        return usage(self.prompt, 0 if self.asks_nothing else sum(generated))


async def whole(request: Request, answer: Answer) -> Response:
    """Answer at once, or give up when the client is gone. ApiError when the engine fails."""
    collecting = asyncio.create_task(_collect(answer))
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((collecting, gone), return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=499)  # nobody reads it; the number is nginx's
        try:
            got = collecting.result()
        except EngineError as error:
            raise _failure(error) from None
        counts = answer.usage([pieces[-1].generated for pieces in got])
        count_tokens(request.scope, counts)
        choices = (form.whole(pieces) for form, pieces in zip(answer.forms, got, strict=True))
        body = await beside_others(sum(map(_size, got)), lambda: answer.envelope.whole(choices, counts))
        return Response(body, media_type="application/json")
    finally:
        for task in (collecting, gone):
            task.cancel()
        await asyncio.gather(collecting, gone, return_exceptions=True)


def _size(pieces: Sequence[Piece]) -> int:
    """Return how many tokens and candidates pieces of an answer tell of."""
    first = pieces[0].outputs[0]
    return (pieces[-1].generated + len(first.prompt)) * (1 + len(first.top))


async def _collect(answer: Answer) -> list[list[Piece]]:
    got: list[list[Piece]] = [[] for _ in answer.forms]
    async with aclosing(answer.pieces) as pieces:
        async for number, piece in pieces:
            got[number].append(piece)
    return got


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def streamed(request: Request, answer: Answer, *, includes_usage: bool) -> Response:
    """Answer as it comes."""
    events = _events(answer, request.scope, includes_usage=includes_usage)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return _Events(events, media_type="text/event-stream", headers=headers)


class _Events(StreamingResponse):
    """Ends what makes its events when they can't be sent any more, and not when somebody collects it."""

    def __init__(self, events: AsyncGenerator[bytes, None], **arguments: Any) -> None:
        super().__init__(events, **arguments)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)


async def _events(answer: Answer, scope: Scope, *, includes_usage: bool) -> AsyncGenerator[bytes, None]:
    envelope, forms = answer.envelope, answer.forms
    generated = [0] * len(forms)
    try:
        async with aclosing(answer.pieces) as pieces:
            async for number, piece in pieces:
                generated[number] = piece.generated
                form = forms[number]
                if piece.outputs[0].prompt:
                    # The only pieces that may be large, and those of all choices may come in one go.
                    choices = await beside_others(_size([piece]) * len(forms), partial(form.events, piece))
                else:
                    choices = form.events(piece)
                if choices:
                    yield envelope.events(choices, has_usage=includes_usage)
    except EngineError as error:
        yield event(_failure(error).body())
        return
    finally:
        counts = answer.usage(generated)
        count_tokens(scope, counts)
    if includes_usage:
        yield event(envelope.part([], {"usage": counts}))
    yield b"data: [DONE]\n\n"


def _failure(error: EngineError) -> ApiError:
    return ApiError(500, f"The engine failed: {error}", code="engine_failed")
