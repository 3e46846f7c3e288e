"""One request from prompt to text, whichever engine computes it: stop strings, held-back text, times."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple

from arctic_workers.inference.engine import Engine, EngineError, FinishReason, Output, Request
from arctic_workers.inference.http.text import Detokenizer, StopStrings, Text
from arctic_workers.inference.metrics import Metrics, RequestTimer

MOST_WITHOUT_TEXT = 256
"""Tokens that are kept for want of text before they are a piece of their own."""


class Piece(NamedTuple):
    """Some text of an answer, and the tokens that came since the piece before; a stop token has no text."""

    text: str
    outputs: tuple[Output, ...]
    generated: int
    """Tokens generated so far, a stop token among them: what usage counts."""
    finish_reason: FinishReason | None


class Answers:
    """Makes answers with an engine."""

    def __init__(self, engine: Engine, text: Text, metrics: Metrics) -> None:
        self._engine = engine
        self._text = text
        self._metrics = metrics

    async def generate(
        self,
        request: Request,
        stops: Sequence[str],
        begun: Callable[[], None],
        ended: Callable[[RequestTimer], None] | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """Yield the answer in pieces, the last with its reason; closing the iterator cancels. Raises EngineError.

        `begun` is called as the engine hears of the request. `ended` is told the times in the end, whichever it is.
        """
        timer = self._metrics.request(len(request.prompt))
        writer = _Writer(self._text, request, stops)
        outcome = "cancelled"
        try:
            begun()  # nothing else has a turn before the engine counts it
            async with aclosing(self._engine.generate(request)) as outputs:
                async for output in outputs:
                    timer.token(output.made, output.begun)
                    if (piece := writer.push(output)) is not None:
                        outcome = piece.finish_reason or outcome
                        yield piece
                        if piece.finish_reason is not None:
                            return
        except EngineError:
            outcome = "failed"
            raise
        finally:
            timer.end(outcome)
            if ended is not None:
                ended(timer)


async def together(
    answers: Sequence[AsyncGenerator[Piece, None]], most: int
) -> AsyncGenerator[tuple[int, Piece], None]:
    """Yield the pieces of several answers with their answer's number, as they come; at most so many are made at once.

    Closing the iterator cancels them all, and reading it slowly has them wait. Raises EngineError.
    """
    if len(answers) == 1:
        async with aclosing(answers[0]) as pieces:
            async for piece in pieces:
                yield 0, piece
        return
    come: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue(most)
    numbered = iter(enumerate(answers))

    async def work() -> None:
        try:
            for number, answer in numbered:
                async with aclosing(answer) as pieces:
                    async for piece in pieces:
                        await come.put((number, piece))
        except Exception as error:  # it is the reader's
            await come.put(error)

    workers = [asyncio.create_task(work()) for _ in range(min(most, len(answers)))]
    unfinished = len(answers)
    try:
        while unfinished:
            item = await come.get()
            if isinstance(item, Exception):
                raise item
            unfinished -= item[1].finish_reason is not None
            yield item
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


class _Writer:
    """Turns one request's tokens into pieces."""

    def __init__(self, text: Text, request: Request, stops: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(text, request.prompt)
        self._stops = StopStrings(stops)
        self._min_tokens = request.sampling.min_tokens
        self._pending: list[Output] = []
        self._generated = 0

    def push(self, output: Output) -> Piece | None:
        """Take a token; return the piece that is now sure, if there is one."""
        self._generated += 1
        reason = output.finish_reason
        self._pending.append(output)
        new = "" if reason == "stop" else self._detokenizer.push(output.token)
        if reason is not None:
            new += self._detokenizer.finish()
        shown = self._stops.push(new, may_end=self._generated > self._min_tokens)
        if self._stops.found:
            reason = "stop"
        elif reason is not None:
            shown += self._stops.finish()
        if not shown and reason is None and len(self._pending) < MOST_WITHOUT_TEXT:
            return None
        pending, self._pending = tuple(self._pending), []
        return Piece(shown, pending, self._generated, reason)
