"""The trace of a request: how long it waited, was read and was answered. Never what was asked or answered, or a key.

Names are OpenTelemetry's for generative AI (semantic conventions, `gen_ai.*`).
"""

import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arctic_api import tracing
from arctic_api.tracing import Attributes, Place, Span
from arctic_workers.inference.engine import Sampling
from arctic_workers.inference.http.access import id_of, tokens_of
from arctic_workers.inference.metrics import RequestTimer

OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
MOST_ANSWERS_TOLD = 8
"""Answers of one request whose times are told; of its others only how they ended."""
_SCOPE = "arctic.trace"


class Trace:
    """What is learnt of one request on its way."""

    def __init__(self) -> None:
        self.model = ""
        self.asked: Attributes = {}
        self._ended: dict[int, RequestTimer] = {}

    def begin(self, model: str, identity: str, sampling: Sampling, choices: int) -> None:
        """Take what a request has asked for, once it is found to be right."""
        self.model = model
        self.asked = {
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
            "gen_ai.response.id": identity,
            "gen_ai.request.choice.count": choices,
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.top_k": sampling.top_k,
            "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
            "gen_ai.request.presence_penalty": sampling.presence_penalty,
        }

    def take(self, number: int, times: RequestTimer) -> None:
        """Take the times of one of the answers, which is over."""
        self._ended[number] = times

    @property
    def outcomes(self) -> list[str]:
        """How each answer ended, in their order."""
        return [times.outcome for _, times in sorted(self._ended.items())]

    def tell(self, under: Place | None) -> None:
        """Record what the times of the answers were."""
        for number, times in sorted(self._ended.items())[:MOST_ANSWERS_TOLD]:
            for name, begun, ended in _parts(times):
                tracing.record(Span(name, begun, ended, under=under, attributes={"arctic.answer": number}))


def trace_of(scope: Scope) -> Trace | None:
    """Return a request's trace, if it has one."""
    trace: Trace | None = scope.get(_SCOPE)
    return trace


class Traced:
    """Records each request for answers when it is over, as a part of the client's trace if that has one."""

    def __init__(self, app: ASGIApp, group: Place) -> None:
        """`group` is the span that theirs are linked to."""
        self._app = app
        self._group = group

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        asks = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in OPERATIONS
        if not asks:
            await self._app(scope, receive, send)
            return
        trace = scope[_SCOPE] = Trace()
        begun, status = time.monotonic(), 0

        async def send_seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_seen)
        finally:
            self._tell(scope, trace, begun, status)

    def _tell(self, scope: Scope, trace: Trace, begun: float, status: int) -> None:
        operation, outcomes = OPERATIONS[scope["path"]], trace.outcomes
        failure = "engine_failed" if "failed" in outcomes else str(status) if status >= 500 else ""
        usage = tokens_of(scope)
        attributes: Attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "arctic",
            **trace.asked,
            "gen_ai.usage.input_tokens": usage.get("prompt_tokens", 0),
            "gen_ai.usage.output_tokens": usage.get("completion_tokens", 0),
            "gen_ai.response.finish_reasons": outcomes,
            "http.response.status_code": status,
            "arctic.request_id": id_of(scope),
            **({"error.type": failure} if failure else {}),
        }
        made = tracing.record(
            Span(
                f"{operation} {trace.model}".rstrip(),
                begun,
                time.monotonic(),
                under=_client(scope["headers"]),
                links=[self._group],
                kind="server",
                error=failure,
                attributes=attributes,
            )
        )
        trace.tell(made)


def _client(headers: Iterable[tuple[bytes, bytes]]) -> Place | None:
    """Return the span of the client's that a request is a part of; of two headers neither counts."""
    parents = [value for name, value in headers if name == b"traceparent"]
    return Place.read(parents[0].decode("latin-1")) if len(parents) == 1 else None


def _parts(times: RequestTimer) -> list[tuple[str, float, float]]:
    """Return the parts of an answer's making with their first and last moments.

    Where an engine doesn't tell when a request's turn came, waiting and reading the prompt are one.
    """
    if times.first is None or times.latest is None:
        return [("queue and prefill", times.begin, time.monotonic())]
    waited = (
        [("queue and prefill", times.begin, times.first)]
        if times.turn is None
        else [("queue", times.begin, times.turn), ("prefill", times.turn, times.first)]
    )
    return [*waited, ("decode", times.first, times.latest)] if times.later_tokens else waited
