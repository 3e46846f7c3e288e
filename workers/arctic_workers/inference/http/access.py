"""What is kept of each request: an id that the client may choose, and a line in the log. Never what was asked."""

import logging
import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

HEADER = "X-Request-Id"
_NAME = HEADER.lower().encode()
_ID = re.compile(rb"[!-~]{1,128}")
_USAGE = "arctic.usage"
_IDENTITY = "arctic.request_id"


def count_tokens(scope: Scope, usage: dict[str, int]) -> None:
    """Keep a request's usage for its line."""
    scope[_USAGE] = usage


def tokens_of(scope: Scope) -> dict[str, int]:
    """Return a request's usage, as far as it is known."""
    return dict(scope.get(_USAGE, {}))


def id_of(scope: Scope) -> str:
    """Return a request's id."""
    return str(scope[_IDENTITY])


class AccessLog:
    """Gives each request an id, which the answer tells, and logs it when it is over."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = _identity(scope)
        scope[_IDENTITY] = identity.decode()
        status = 0
        begin = time.perf_counter()

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (_NAME, identity)]
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        finally:
            usage = tokens_of(scope)
            log.info(
                "%s %s %d, %d + %d tokens, %.3f s, id %s",
                scope["method"],
                # As it was sent: what it stands for may have line breaks.
                scope.get("raw_path", scope["path"].encode()).decode("ascii", "backslashreplace"),
                status,
                usage.get("prompt_tokens", 0),
                usage.get("completion_tokens", 0),
                time.perf_counter() - begin,
                identity.decode(),
            )


def _identity(scope: Scope) -> bytes:
    """The id that the client gave, if it is a word of at most 128 characters, else a new one."""
    for name, value in scope["headers"]:
        if name == _NAME and _ID.fullmatch(value):
            return bytes(value)
    return secrets.token_hex(16).encode()
