"""The OpenAI-compatible HTTP API over any engine: reading requests, admission, answers whole or streamed."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arctic_workers.inference import engine as engines
from arctic_workers.inference.engine import Engine, EngineError, Sampling, Stats
from arctic_workers.inference.http.answer import Answers, Piece
from arctic_workers.inference.http.chat import TextError
from arctic_workers.inference.http.forms import ChatForm, CompletionForm, Form, usage
from arctic_workers.inference.http.protocol import (
    ApiError,
    ChatRequest,
    CommonRequest,
    CompletionRequest,
    Conversation,
    DetokenizeRequest,
    TokenizeRequest,
    parse,
)
from arctic_workers.inference.http.text import Text
from arctic_workers.inference.metrics import Metrics

log = logging.getLogger(__name__)
Result = TypeVar("Result")

MOST_BODY_BYTES = 4 * 1024 * 1024
DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for `max_tokens` of completions; chats may fill the context."""
BODY_SECONDS = 30.0
"""Time for a request's body to arrive: until then it counts as waiting."""
LARGE_TEXT = 8192
"""Characters of a prompt, or bytes of a chat, that take so long to be made tokens that other answers would stop."""
RETRY_AFTER_BUSY = 1
RETRY_AFTER_DRAINING = 5


class Gate:
    """How many are inside, and who may still come in while the server ends: at first everybody, since those who send
    need time to hear of it.

    Once closed, only connections that were open then: a proxy may have sent a request on one already. From the
    beginning on each connection is closed by its next answer.
    """

    def __init__(self) -> None:
        self.draining = False
        self.inside = 0
        """Requests for answers, from their first byte until all of their answer is sent."""
        self._open: frozenset[tuple[str, int]] | None = None

    @property
    def closed(self) -> bool:
        """Whether new connections are turned away."""
        return self._open is not None

    def waiting(self, stats: Stats) -> int:
        """Return how many wait; the engine, which has these `stats`, has not heard of all of them yet."""
        return max(self.inside - stats.running, stats.waiting)

    def drain(self) -> None:
        """Begin to drain."""
        self.draining = True

    def close(self, open_connections: frozenset[tuple[str, int]]) -> None:
        """Turn new connections away; those that are open are named by the client's address and port."""
        self._open = open_connections

    def admits(self, client: tuple[str, int] | None) -> bool:
        """Tell whether a request of that client is served."""
        return self._open is None or (client is not None and tuple(client) in self._open)


class Api:
    """The application for one served model. `vocabulary` is the number of tokens that the model knows."""

    def __init__(
        self,
        engine: Engine,
        text: Text,
        metrics: Metrics,
        gate: Gate,
        *,
        model: str,
        vocabulary: int,
        most_waiting: int,
    ) -> None:
        self._engine = engine
        self._text = text
        self._metrics = metrics
        self._answers = Answers(engine, text, metrics)
        self._model = model
        self._created = int(time.time())
        self._vocabulary = vocabulary
        routes = [
            Route("/health", self._health),
            Route("/version", self._version),
            Route("/metrics", self._expose),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/detokenize", self._detokenize, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{model:path}", self._one_model),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
        ]
        handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
            ApiError: _refuse,
            HTTPException: _refuse_route,
            Exception: _break,
        }
        app = Starlette(routes=routes, exception_handlers=handlers)
        self.app: ASGIApp = _Doorkeeper(app, gate, engine, most_waiting)

    async def _health(self, request: Request) -> Response:  # noqa: ARG002
        self._check_ready()
        return JSONResponse({"status": "ok"})

    async def _version(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse({"version": version("arctic-kubernetes")})

    async def _expose(self, request: Request) -> Response:  # noqa: ARG002
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _tokenize(self, request: Request) -> Response:
        body = await _read(request)
        asked = parse(TokenizeRequest, body)
        self._check_model(asked.model)
        if asked.messages is None:
            special = asked.add_special_tokens
            tokens = await self._encode(asked.text, "prompt", special=special)
        else:
            tokens = await self._chat_tokens(asked, len(body))
        answer = {"tokens": tokens, "count": len(tokens), "max_model_len": self._engine.max_length}
        names = {"token_strs": [self._text.token_name(token) for token in tokens]} if asked.return_token_strs else {}
        return JSONResponse({**answer, **names})

    async def _detokenize(self, request: Request) -> Response:
        asked = parse(DetokenizeRequest, await _read(request))
        self._check_model(asked.model)
        text = self._text.decode(self._known(asked.tokens, "tokens"), special=True)
        return JSONResponse({"prompt": text, "content": text})

    async def _models(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def _one_model(self, request: Request) -> Response:
        self._check_model(request.path_params["model"])
        return JSONResponse(self._card())

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._model,
            "object": "model",
            "created": self._created,
            "owned_by": "arctic",
            "max_model_len": self._engine.max_length,
        }

    async def _completions(self, request: Request) -> Response:
        asked = parse(CompletionRequest, await _read(request))
        self._check_model(asked.model)
        prompt = await self._prompt(asked)
        if asked.echo and asked.logprobs is not None:
            raise ApiError(400, "'echo' with 'logprobs' is not supported; leave one of them out", param="echo")
        sampling = self._sampling(
            asked, len(prompt), asked.max_tokens or min(DEFAULT_COMPLETION_TOKENS, self._room(prompt)), asked.logprobs
        )
        echo = self._text.decode(prompt) if asked.echo else ""
        form = CompletionForm(self._model, self._text, logprobs=asked.logprobs is not None, echo=echo)
        return await self._answer(request, asked, prompt, sampling, form)

    async def _chat(self, request: Request) -> Response:
        body = await _read(request)
        asked = parse(ChatRequest, body)
        self._check_model(asked.model)
        prompt = await self._chat_tokens(asked, len(body))
        most = asked.max_completion_tokens or asked.max_tokens or self._room(prompt)
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        sampling = self._sampling(asked, len(prompt), most, logprobs)
        form = ChatForm(self._model, self._text, logprobs=logprobs is not None)
        return await self._answer(request, asked, prompt, sampling, form)

    async def _chat_tokens(self, asked: Conversation, size: int) -> list[int]:
        try:
            text = await _beside_others(size, partial(self._render, asked))
        except TextError as error:
            raise ApiError(400, str(error), param="messages") from None
        return await self._encode(text, "messages", special=not self._text.chat.is_marked)

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self._model):
            raise ApiError(
                404,
                f"There is no model {name!r} here; write {self._model!r}",
                param="model",
                code="model_not_found",
            )

    async def _prompt(self, asked: CompletionRequest) -> list[int]:
        prompt = asked.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise ApiError(400, f"{len(prompt)} prompts in one request; send one request each", param="prompt")
            prompt = prompt[0]
        if isinstance(prompt, str):
            return await self._encode(prompt, "prompt", special=True)
        return self._known([token for token in prompt if isinstance(token, int)], "prompt")

    def _known(self, tokens: list[int], param: str) -> list[int]:
        """Return tokens, all of them the model's."""
        if wrong := [token for token in tokens if not 0 <= token < self._vocabulary]:
            raise ApiError(
                400, f"token {wrong[0]} is not one of the model's {self._vocabulary}: 0 to less", param=param
            )
        return tokens

    def _render(self, asked: Conversation) -> str:
        return self._text.chat.render(
            [message.plain() for message in asked.messages or ()],
            add_generation_prompt=asked.add_generation_prompt,
            continue_final=asked.continue_final_message,
            variables=asked.chat_template_kwargs,
        )

    async def _encode(self, text: str, param: str, *, special: bool) -> list[int]:
        """Turn text into tokens; what is far too long is not even tried."""
        least = self._text.least_tokens(text)
        if least > self._engine.max_length:
            raise self._too_long(param, f"the prompt alone has at least {least}; make it shorter")
        return await _beside_others(len(text), partial(self._text.encode, text, special=special))

    def _too_long(self, param: str, sentence: str) -> ApiError:
        return ApiError(
            400,
            f"This model's maximum context length is {self._engine.max_length} tokens, and {sentence}",
            param=param,
            code="context_length_exceeded",
        )

    def _room(self, prompt: list[int]) -> int:
        """Tokens that may follow a prompt; at least 1, which a prompt that is too long is then refused for."""
        return max(self._engine.max_length - len(prompt), 1)

    def _check_abilities(self, asked: CommonRequest, logprobs: int | None) -> None:
        given = {"seed": asked.seed is not None, "top_k": (asked.top_k or 0) > 0, "logprobs": logprobs is not None}
        for field in sorted(self._engine.cannot):
            if given[field]:
                message = f"'{field}' is not supported by the engine that serves this model; leave it out"
                raise ApiError(400, message, param=field, code="unsupported_parameter")

    def _sampling(self, asked: CommonRequest, prompt: int, most: int, logprobs: int | None) -> Sampling:
        self._check_abilities(asked, logprobs)
        if not prompt:
            raise ApiError(400, "the prompt is empty; write at least one token", param="prompt")
        if prompt + most > self._engine.max_length:
            raise self._too_long(
                "messages" if isinstance(asked, ChatRequest) else "prompt",
                f"{prompt + most} were asked for: {prompt} in the prompt and {most} in the answer; make one of them "
                "shorter",
            )
        return Sampling(
            max_tokens=most,
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            top_k=max(asked.top_k or 0, 0),
            seed=secrets.randbits(63) if asked.seed is None else asked.seed,
            logprobs=logprobs,
            stop_tokens=self._text.stop_tokens,
        )

    def _check_ready(self) -> None:
        if not self._engine.ready:
            raise ApiError(503, "The engine is not ready", code="not_ready", retry=RETRY_AFTER_DRAINING)

    async def _answer(
        self, request: Request, asked: CommonRequest, prompt: list[int], sampling: Sampling, form: Form
    ) -> Response:
        self._check_ready()
        pieces = self._answers.generate(engines.Request(tuple(prompt), sampling), asked.stops)
        if asked.stream:
            events = _events(pieces, form, len(prompt), includes_usage=asked.includes_usage)
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        return await _whole(request, pieces, form, len(prompt))


async def _beside_others(size: int, work: Callable[[], Result]) -> Result:
    """Do work on a prompt of that size; where it is large, without holding up other answers."""
    return work() if size < LARGE_TEXT else await asyncio.to_thread(work)


async def _whole(request: Request, pieces: AsyncGenerator[Piece, None], form: Form, prompt: int) -> Response:
    """Answer at once, or give up when the client is gone."""

    async def collect() -> list[Piece]:
        async with aclosing(pieces):
            return [piece async for piece in pieces]

    collecting = asyncio.create_task(collect())
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((collecting, gone), return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=499)  # nobody reads it; the number is nginx's
        try:
            got = collecting.result()
        except EngineError as error:
            raise ApiError(500, f"The engine failed: {error}", code="engine_failed") from None
        body = form.envelope([form.whole(got)], streamed=False)
        return JSONResponse({**body, "usage": usage(prompt, got[-1].generated)})
    finally:
        for task in (collecting, gone):
            task.cancel()
        await asyncio.gather(collecting, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    pieces: AsyncGenerator[Piece, None], form: Form, prompt: int, *, includes_usage: bool
) -> AsyncGenerator[str, None]:
    """Server-sent events of one answer; where usage is asked for, every event has the key, as with OpenAI."""
    nothing = {"usage": None} if includes_usage else {}

    def event(choices: list[dict[str, Any]], extra: dict[str, Any]) -> str:
        return _event({**form.envelope(choices, streamed=True), **extra})

    generated = 0
    async with aclosing(pieces):
        for choice in form.opening():
            yield event([choice], nothing)
        try:
            async for piece in pieces:
                generated = piece.generated
                for choice in form.events(piece):
                    yield event([choice], nothing)
        except EngineError as error:
            yield _event(ApiError(500, f"The engine failed: {error}", code="engine_failed").body())
            return
    if includes_usage:
        yield event([], {"usage": usage(prompt, generated)})
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _read(request: Request) -> bytes:
    """Return the body, at most `MOST_BODY_BYTES` of it."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BODY_BYTES:
                    raise ApiError(
                        413,
                        f"The request's body is larger than {MOST_BODY_BYTES} bytes; make it smaller",
                        code="too_large",
                    )
    except TimeoutError:
        raise ApiError(
            408, f"The request's body did not arrive within {BODY_SECONDS:.0f} s; send it again", code="request_timeout"
        ) from None
    except ClientDisconnect:
        raise ApiError(400, "The client left before its request was whole") from None
    return bytes(body)


async def _refuse(request: Request, error: ApiError) -> Response:  # noqa: ARG001
    headers = {} if error.retry is None else {"Retry-After": str(error.retry)}
    if error.status == 408:
        headers["Connection"] = "close"  # the rest of the body could be taken for a request
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


async def _refuse_route(request: Request, error: HTTPException) -> Response:
    message = f"There is no {request.method} {request.url.path} here"
    refusal = ApiError(error.status_code, message, code="unknown_url")
    return JSONResponse(refusal.body(), status_code=error.status_code, headers=error.headers)


async def _break(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return await _refuse(request, ApiError(500, "The server failed; see its log", code="internal_error"))


class _Doorkeeper:
    """Turns away what the gate does not admit and what comes when too many wait, and has connections closed while the
    gate drains. Requests count from their first byte on, so that a burst can't slip through before the engine has it.
    """

    def __init__(self, app: ASGIApp, gate: Gate, engine: Engine, most_waiting: int) -> None:
        self._app = app
        self._gate = gate
        self._engine = engine
        self._most_waiting = most_waiting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._gate.draining:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            response = await _refuse(Request(scope), refusal)
            await response(scope, receive, send_closing)
            return
        generates = scope["method"] == "POST"
        self._gate.inside += generates
        try:
            await self._app(scope, receive, send_closing)
        finally:
            self._gate.inside -= generates

    def _refusal(self, scope: Scope) -> ApiError | None:
        if not self._gate.admits(scope.get("client")):
            return ApiError(
                503, "This server is ending; the request was not begun", code="draining", retry=RETRY_AFTER_DRAINING
            )
        if scope["method"] == "POST" and self._gate.waiting(self._engine.stats()) >= self._most_waiting:
            return ApiError(
                429, "Too many requests wait already; try again later", code="queue_full", retry=RETRY_AFTER_BUSY
            )
        return None
