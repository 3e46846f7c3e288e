"""The OpenAI-compatible HTTP API over any engine: reading requests, admission, answers whole or streamed."""

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arctic_api.tracing import Place
from arctic_workers.chat.template import TextError
from arctic_workers.inference import engine as engines
from arctic_workers.inference.engine import UNLIMITED, Engine, Sampling, SamplingField, Stats
from arctic_workers.inference.http.access import HEADER as REQUEST_ID
from arctic_workers.inference.http.access import AccessLog
from arctic_workers.inference.http.answer import Answers, together
from arctic_workers.inference.http.beside import beside_others
from arctic_workers.inference.http.forms import ChatForm, CompletionForm, Envelope, Form
from arctic_workers.inference.http.keys import KeyFiles, Locked
from arctic_workers.inference.http.protocol import (
    ApiError,
    ChatRequest,
    CommonRequest,
    CompletionRequest,
    Conversation,
    DetokenizeRequest,
    RequestType,
    TokenizeRequest,
    parse,
    shortened,
)
from arctic_workers.inference.http.responses import Answer, streamed, whole
from arctic_workers.inference.http.text import Text
from arctic_workers.inference.http.traces import Traced, trace_of
from arctic_workers.inference.metrics import Metrics

log = logging.getLogger(__name__)

MOST_BODY_BYTES = 4 * 1024 * 1024
READ_PAST_BYTES = 8 * MOST_BODY_BYTES
"""Of a body that is too large so much is read, and kept nowhere, before it is refused: who is answered while it still
sends may find the connection broken and no answer, always so behind a proxy."""
DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for `max_tokens` of completions; chats may fill the context."""
UNASKED = 4096
"""Most tokens of a chat's answer in one piece where requests have no bound and this one names no `max_tokens`."""
MOST_WHOLE = 131_072
"""Most tokens of an answer in one piece: all of them are kept until it is whole."""
BODY_SECONDS = 30.0
"""Time for a request's body to arrive: until then it counts as waiting."""
MOST_ANSWERS = 2048
"""Of one request, to all its prompts."""
UNREAD_SECONDS = 60.0
"""Time after which an answer is given up that its client does not read: what an engine makes meanwhile is kept."""
RETRY_AFTER_BUSY = 1
RETRY_AFTER_DRAINING = 5
_NEUTRAL = Sampling(max_tokens=1)


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
        self.arriving = 0
        """Those of them of which the engine has heard nothing yet."""
        self._open: frozenset[tuple[str, int]] | None = None

    @property
    def closed(self) -> bool:
        """Whether new connections are turned away."""
        return self._open is not None

    def waiting(self, stats: Stats) -> int:
        """Return how many wait; the engine, which has these `stats`, has not heard of all of them yet."""
        return self.arriving + stats.waiting

    def drain(self) -> None:
        """Begin to drain."""
        self.draining = True

    def close(self, open_connections: frozenset[tuple[str, int]]) -> None:
        """Turn new connections away; those that are open are named by the client's address and port."""
        self._open = open_connections

    def admits(self, client: tuple[str, int] | None) -> bool:
        """Tell whether a request of that client is served."""
        return self._open is None or (client is not None and tuple(client) in self._open)


class _Arrival:
    """Counts one request at the gate until the engine counts its answers: a request may have many."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._is_over = False
        gate.arriving += 1

    def end(self) -> None:
        """Count it no more; again is nothing."""
        if not self._is_over:
            self._is_over = True
            self._gate.arriving -= 1


_ARRIVAL = "arctic.arrival"


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
        adapters: Sequence[str] = (),
        vocabulary: int,
        most_running: int,
        most_waiting: int,
        cors: Sequence[str] = (),
        keys: KeyFiles | None = None,
        linked: Place | None = None,
    ) -> None:
        """Of one request, at most `most_running` answers are made at once, so that it takes no more than its turn.

        Pages of the origins `cors` may ask, of all where "*" is among them. With `keys` a request needs one of them.
        Requests are traced if there is a span that theirs are `linked` to.
        """
        self._engine = engine
        self._text = text
        self._metrics = metrics
        self._answers = Answers(engine, text, metrics)
        self._model = model
        self._names = (model, *adapters)
        self._created = int(time.time())
        self._vocabulary = vocabulary
        # A model's files may name tokens that it hasn't, which a rank could not ban.
        self._ends = text.stop_tokens.intersection(range(vocabulary))
        self._most_running = most_running
        routes = [
            Route("/health", self._health),
            Route("/version", self._version),
            Route("/metrics", self._expose),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/tokenizer_info", self._tokenizer_info),
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
        app.router.redirect_slashes = False  # clients would lose the body, or take the page of the redirect for JSON
        doorkeeper = _Doorkeeper(app, gate, engine, most_waiting)
        served: ASGIApp = Locked(doorkeeper, keys) if keys else doorkeeper
        self.app: ASGIApp = AccessLog(Traced(served, linked) if linked else served)
        if cors:
            self.app = CORSMiddleware(
                self.app,
                allow_origins=cors,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=[REQUEST_ID, "Retry-After"],
            )

    async def _health(self, request: Request) -> Response:  # noqa: ARG002
        self._check_ready()
        return JSONResponse({"status": "ok"})

    async def _version(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse({"version": version("arctic-kubernetes")})

    async def _expose(self, request: Request) -> Response:  # noqa: ARG002
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _tokenize(self, request: Request) -> Response:
        asked, size = await _asked(request, TokenizeRequest)
        self._check_model(asked.model)
        if asked.messages is None:
            [tokens] = await self._encode([asked.text], "prompt", special=asked.adds_special)
        else:
            tokens = await self._chat_tokens(asked, size)
        names = bool(asked.return_token_strs)
        return await beside_others(len(tokens), partial(self._tell_tokens, tokens, names=names))

    def _tell_tokens(self, tokens: list[int], *, names: bool) -> Response:
        answer = {"tokens": tokens, "count": len(tokens), "max_model_len": self._engine.max_length}
        named = {"token_strs": [self._text.token_name(token) for token in tokens]} if names else {}
        return JSONResponse({**answer, **named})

    async def _tokenizer_info(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse(self._text.info())

    async def _detokenize(self, request: Request) -> Response:
        asked, _ = await _asked(request, DetokenizeRequest)
        self._check_model(asked.model)
        text = await beside_others(
            len(asked.tokens), lambda: self._text.decode(self._known(asked.tokens, "tokens"), special=True)
        )
        return JSONResponse({"prompt": text, "content": text})

    async def _models(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self._names]})

    async def _one_model(self, request: Request) -> Response:
        name = request.path_params["model"]
        self._check_model(name)
        return JSONResponse(self._card(name))

    def _card(self, name: str) -> dict[str, Any]:
        base = {} if name == self._model else {"parent": self._model}
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "arctic",
            "max_model_len": self._engine.max_length,
            **base,
        }

    async def _completions(self, request: Request) -> Response:
        asked, _ = await _asked(request, CompletionRequest)
        self._check_model(asked.model)
        if len(asked.prompts) * asked.choices > MOST_ANSWERS:
            message = f"{len(asked.prompts)} prompts with {asked.choices} answers each are too many in one request; "
            raise ApiError(400, f"{message}at most {MOST_ANSWERS} answers are made", param="prompt")
        prompts = await self._prompts(asked.prompts, special=asked.add_special_tokens)
        asks_nothing = asked.max_tokens == 0
        echo, logprobs, caller = bool(asked.echo), asked.logprobs, _caller(request)

        def most(prompt: list[int]) -> int:
            if asked.max_tokens is None:
                return min(DEFAULT_COMPLETION_TOKENS, self._room(prompt))
            return asked.max_tokens or 1  # engines make at least one

        requests = [
            self._engine_request(asked, prompt, most(prompt), logprobs, logprobs if echo else None, caller)
            for prompt in prompts
        ]
        echoes = await self._echoes(prompts) if echo else [None] * len(prompts)
        forms = [
            CompletionForm(
                self._text, index, prompts[index // asked.choices],
                logprobs=logprobs is not None, echo=echoes[index // asked.choices], answers=not asks_nothing,
            )
            for index in range(len(prompts) * asked.choices)
        ]  # fmt: skip
        envelope = Envelope(asked.model, "cmpl", "text_completion", "text_completion")
        return await self._answer(request, asked, requests, envelope, forms, asks_nothing=asks_nothing)

    async def _chat(self, request: Request) -> Response:
        asked, size = await _asked(request, ChatRequest)
        self._check_model(asked.model)
        prompt = await self._chat_tokens(asked, size)
        most = asked.max_completion_tokens or asked.max_tokens or self._unasked(prompt, stream=bool(asked.stream))
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        asked_of_engine = self._engine_request(asked, prompt, most, logprobs, None, _caller(request))
        forms = [ChatForm(self._text, index, logprobs=logprobs is not None) for index in range(asked.choices)]
        envelope = Envelope(asked.model, "chatcmpl", "chat.completion", "chat.completion.chunk")
        return await self._answer(request, asked, [asked_of_engine], envelope, forms)

    async def _chat_tokens(self, asked: Conversation, size: int) -> list[int]:
        try:
            text = await beside_others(size, partial(self._render, asked))
        except TextError as error:
            raise ApiError(400, str(error), param="messages") from None
        special = asked.adds_special or not self._text.chat.is_marked
        [tokens] = await self._encode([text], "messages", special=special)
        return tokens

    def _check_model(self, name: str | None) -> None:
        if name not in (None, *self._names):
            raise ApiError(
                404,
                f"There is no model {shortened(repr(name))} here; write {' or '.join(map(repr, self._names))}",
                param="model",
                code="model_not_found",
            )

    async def _prompts(self, given: list[str] | list[list[int]], *, special: bool) -> list[list[int]]:
        texts = [prompt for prompt in given if isinstance(prompt, str)]
        if texts:  # then all are
            return await self._encode(texts, "prompt", special=special)
        tokens = [prompt for prompt in given if not isinstance(prompt, str)]
        return await beside_others(sum(map(len, tokens)), lambda: [self._known(prompt, "prompt") for prompt in tokens])

    async def _echoes(self, prompts: list[list[int]]) -> list[str]:
        return await beside_others(
            sum(map(len, prompts)), lambda: [self._text.decode_finished(prompt) for prompt in prompts]
        )

    def _known(self, tokens: list[int], param: str) -> list[int]:
        """Return tokens, all of them the model's."""
        if wrong := [token for token in tokens if not 0 <= token < self._vocabulary]:
            token = shortened(str(wrong[0]))
            raise ApiError(400, f"token {token} is not one of the model's {self._vocabulary}: 0 to less", param=param)
        return tokens

    def _render(self, asked: Conversation) -> str:
        return self._text.chat.render(
            [message.plain() for message in asked.messages or ()],
            add_generation_prompt=asked.add_generation_prompt,
            continue_final=asked.continue_final_message,
            tools=asked.tools,
            variables=asked.chat_template_kwargs,
        )

    async def _encode(self, texts: list[str], param: str, *, special: bool) -> list[list[int]]:
        """Turn each text into tokens; what is far too long is not even tried."""
        least = max(map(self._text.least_tokens, texts))
        if least > self._engine.max_length:
            raise self._too_long(param, f"the prompt alone has at least {least}; make it shorter")
        return await beside_others(
            sum(map(len, texts)), lambda: [self._text.encode(text, special=special) for text in texts]
        )

    def _too_long(self, param: str, sentence: str) -> ApiError:
        return ApiError(
            400,
            f"This model's maximum context length is {self._engine.max_length} tokens, and {sentence}",
            param=param,
            code="context_length_exceeded",
        )

    def _excess(self, asked: CommonRequest, prompt: int, most: int) -> str:
        """Say what of a request is too long; who asks for no answer would not know of the token that is made."""
        if asked.max_tokens == 0:
            longest = self._engine.max_length - 1
            made = f"one of them is made even with max_tokens: 0, so that a prompt has at most {longest} here"
            return f"{made}; this one has {prompt}; make it shorter"
        asked_for = f"{prompt + most} were asked for: {prompt} in the prompt and {most} in the answer"
        return f"{asked_for}; make one of them shorter"

    def _room(self, prompt: list[int]) -> int:
        """Tokens that may follow a prompt; at least 1, which a prompt that is too long is then refused for."""
        return max(self._engine.max_length - len(prompt), 1)

    def _unasked(self, prompt: list[int], *, stream: bool) -> int:
        """Most tokens of a chat's answer whose request names no number.

        Where requests have no bound, a stream goes on until the client leaves; nobody would see the end of the others.
        """
        room = self._room(prompt)
        if stream:
            return room
        return min(room, UNASKED if self._engine.max_length == UNLIMITED else MOST_WHOLE)

    def _check_abilities(self, asked: CommonRequest, made: engines.Request) -> None:
        for field in sorted(self._engine.cannot):
            if _asks_for(field, asked, made):
                name = _PARAMETERS.get(field, field)
                message = f"'{name}' is not supported by the engine that serves this model; leave it out"
                raise ApiError(400, message, param=name, code="unsupported_parameter")
        if problem := self._engine.problem(made):
            raise ApiError(400, problem, code="unsupported_value")

    def _engine_request(
        self,
        asked: CommonRequest,
        prompt: list[int],
        most: int,
        logprobs: int | None,
        prompt_logprobs: int | None,
        caller: bytes,
    ) -> engines.Request:
        if not prompt:
            raise ApiError(400, "the prompt is empty; write at least one token", param="prompt")
        if len(prompt) + most > self._engine.max_length:
            param = "messages" if isinstance(asked, ChatRequest) else "prompt"
            raise self._too_long(param, self._excess(asked, len(prompt), most))
        if most > MOST_WHOLE and not asked.stream:
            message = f"{most} tokens are too many in one piece; write at most {MOST_WHOLE}, or stream: true"
            raise ApiError(400, message, param="max_tokens")
        sampling = self._sampling(asked, most, logprobs, prompt_logprobs)
        adapter = None if asked.model == self._model else asked.model
        made = engines.Request(tuple(prompt), sampling, asked.priority or 0, caller, adapter)
        self._check_abilities(asked, made)
        return made

    def _sampling(self, asked: CommonRequest, most: int, logprobs: int | None, prompt_logprobs: int | None) -> Sampling:
        if (asked.min_tokens or 0) > most:
            message = f"min_tokens is {asked.min_tokens} and the answer has at most {most}; write so many or less"
            raise ApiError(400, message, param="min_tokens")
        biases = asked.logit_bias or {}
        self._known(list(biases), "logit_bias")
        stops = self._stop_tokens(asked)
        only_likeliest = asked.top_p == 0  # it is the first to cross that share, and engines take more than 0
        return Sampling(
            max_tokens=most,
            temperature=_given(asked.temperature, 1.0),
            top_p=asked.top_p or 1.0,
            top_k=1 if only_likeliest else max(asked.top_k or 0, 0),
            seed=secrets.randbits(63) if asked.seed is None else asked.seed,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            stop_tokens=stops,
            min_tokens=asked.min_tokens or 0,
            min_p=asked.min_p or 0.0,
            frequency_penalty=asked.frequency_penalty or 0.0,
            presence_penalty=asked.presence_penalty or 0.0,
            repetition_penalty=_given(asked.repetition_penalty, 1.0),
            logit_bias=tuple(sorted(biases.items())),
        )

    def _stop_tokens(self, asked: CommonRequest) -> frozenset[int]:
        """Return the tokens that end an answer; some token has to be left for one that may not end yet."""
        stops = frozenset(self._known(asked.stop_token_ids or [], "stop_token_ids"))
        if not asked.ignore_eos:
            stops |= self._ends
        if asked.min_tokens and len(stops) == self._vocabulary:
            message = f"all of the model's {self._vocabulary} tokens are stop tokens, of which none may come before"
            message = f"{message} min_tokens: {asked.min_tokens}; write fewer, or min_tokens: 0"
            raise ApiError(400, message, param="stop_token_ids")
        return stops

    def _check_ready(self) -> None:
        if not self._engine.ready:
            raise ApiError(503, "The engine is not ready", code="not_ready", retry=RETRY_AFTER_DRAINING)

    async def _answer(
        self,
        request: Request,
        asked: CommonRequest,
        requests: Sequence[engines.Request],
        envelope: Envelope,
        forms: Sequence[Form],
        *,
        asks_nothing: bool = False,
    ) -> Response:
        """Answer with each prompt's choices, in the order of the prompts: `requests` are their first ones."""
        self._check_ready()
        wanted = [_sample(first, number) for first in requests for number in range(asked.choices)]
        if trace := trace_of(request.scope):
            trace.begin(asked.model or self._model, envelope.id, requests[0].sampling, len(wanted))
        begun = request.scope[_ARRIVAL].end
        answers = [
            self._answers.generate(each, asked.stops, begun, partial(trace.take, number) if trace else None)
            for number, each in enumerate(wanted)
        ]
        pieces = together(answers, self._most_running)
        answer = Answer(envelope, forms, pieces, sum(len(each.prompt) for each in requests), asks_nothing)
        if asked.stream:
            return streamed(request, answer, includes_usage=asked.includes_usage)
        return await whole(request, answer)


_PARAMETERS: dict[SamplingField, str] = {"prompt_logprobs": "echo"}
"""Names of parameters that are not those of the fields that they ask for."""


def _asks_for(field: SamplingField, asked: CommonRequest, made: engines.Request) -> bool:
    if field == "seed":  # every request has one
        return asked.seed is not None
    if field == "priority":
        return made.priority != 0
    return bool(getattr(made.sampling, field) != getattr(_NEUTRAL, field))


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _sample(first: engines.Request, number: int) -> engines.Request:
    """Return the request for one of a prompt's choices: each has its own seed, the first the one that was given."""
    if number == 0:
        return first
    digest = hashlib.blake2b(f"{first.sampling.seed}/{number}".encode(), digest_size=8).digest()
    return replace(first, sampling=replace(first.sampling, seed=int.from_bytes(digest, "little", signed=True)))


def _caller(request: Request) -> bytes:
    """Digest of the key that a request came with; who has no key is one caller with all who have none."""
    return hashlib.blake2b(request.headers.get("authorization", "").encode()).digest()


async def _asked(request: Request, kind: type[RequestType]) -> tuple[RequestType, int]:
    """Return what a request asks for, and the size of its body in bytes."""
    body = await _read(request)
    coding = request.headers.get("content-encoding", "").lower()
    if coding not in ("", "identity"):
        message = f"The request's body is compressed ({shortened(coding)}); send it as it is"
        raise ApiError(415, message, code="unsupported_encoding")
    return await beside_others(len(body), partial(parse, kind, body)), len(body)


async def _read(request: Request) -> bytes:
    """Return the body, at most `MOST_BODY_BYTES` of it."""
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= MOST_BODY_BYTES:
                    body += chunk
                elif size > READ_PAST_BYTES:
                    break
    except TimeoutError:
        raise ApiError(
            408, f"The request's body did not arrive within {BODY_SECONDS:.0f} s; send it again", code="request_timeout"
        ) from None
    except ClientDisconnect:
        raise ApiError(400, "The client left before its request was whole") from None
    if size > MOST_BODY_BYTES:
        raise ApiError(
            413, f"The request's body is larger than {MOST_BODY_BYTES} bytes; make it smaller", code="too_large"
        )
    return bytes(body)


async def _refuse(request: Request, error: ApiError) -> Response:  # noqa: ARG001
    headers = {} if error.retry is None else {"Retry-After": str(error.retry)}
    if error.status == 408:
        headers["Connection"] = "close"  # the rest of the body could be taken for a request
    if error.status == 415:
        headers["Accept-Encoding"] = "identity"
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


async def _refuse_route(request: Request, error: HTTPException) -> Response:
    message = f"There is no {shortened(request.method)} {shortened(request.url.path)} here"
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

        refusal = self._refusal(scope)
        app: ASGIApp = self._app if refusal is None else await _refuse(Request(scope), refusal)
        generates = refusal is None and scope["method"] == "POST"
        patience = _Patience(UNREAD_SECONDS)

        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._gate.draining:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            with patience:
                await send(message)

        self._gate.inside += generates
        arrival = scope[_ARRIVAL] = _Arrival(self._gate) if generates else None
        try:
            await app(scope, receive, send_closing)
        except Exception:
            if not patience.over:
                raise
            log.info("A client has read nothing of its answer for %.0f s; it is given up", UNREAD_SECONDS)
        finally:
            patience.end()
            self._gate.inside -= generates
            if arrival:
                arrival.end()

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


class _Patience:
    """Breaks off, with OSError, what goes on within it for so many seconds in one go.

    One timer an answer: one a message costs as much as the message.
    """

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._begun: float | None = None
        self._timer = self._loop.call_later(seconds, self._look)

    def end(self) -> None:
        """Stop the timer."""
        self._timer.cancel()

    def __enter__(self) -> None:
        self._task, self._begun = asyncio.current_task(self._loop), self._loop.time()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._begun = None
        if self.over and kind is asyncio.CancelledError and self._task is not None:
            self._task.uncancel()
            raise OSError("nobody reads the answer")

    def _look(self) -> None:
        begun = self._loop.time() if self._begun is None else self._begun
        left = begun + self._seconds - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        elif self._task is not None:
            self.over = True
            self._task.cancel()
