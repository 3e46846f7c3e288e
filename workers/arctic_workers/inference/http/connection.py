"""A connection of the HTTP API: uvicorn's with httptools, which costs a streamed token a tenth less than with h11."""

import httptools
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MOST_HEAD_BYTES = 64 * 1024
"""Of a request's line and headers: httptools itself keeps however much is sent."""

MOST_PIPELINED = 64
MOST_PIPELINED_BYTES = 4 * 1024 * 1024
"""Requests that may wait for the answers before theirs, and their bodies together: one of the largest has room."""


class Connection(HttpToolsProtocol):
    """Ends with 400 where a request's head goes on for ever; offers to change the protocol are passed over.

    It is read all the time, since only who reads sees that the client leaves: what comes behind the requests that may
    wait is thrown away, and the last answer closes the connection.
    """

    _head: int | None = None
    """Bytes of the head that is being read, but for those that it began with; None while none is."""
    _running: RequestResponseCycle = None  # type: ignore[assignment]  # as uvicorn has it
    """The request that is answered, or was last: where requests are pipelined, not the one that was read last."""
    _is_offer: bool = False
    """Whether the request that is being read offers another protocol."""
    _is_full: bool = False
    """Whether what still comes is thrown away."""

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._is_full:
            return
        before = self._head
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if before is None or self._head != before or self.transport.is_closing():
            return
        self._head += len(data)
        if self._head > MOST_HEAD_BYTES:
            self.send_400_response(f"The request's line and headers are larger than {MOST_HEAD_BYTES >> 10} KiB.")

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever is answering: uvicorn tells only the request that was read last."""
        for cycle in (self._running, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what was read, and close; within an answer that is being sent nothing can be said any more."""
        if self._running is not None and self._running.response_started and not self._running.response_complete:
            self.transport.close()
        else:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        """See `HttpToolsProtocol`."""
        self._head = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See `HttpToolsProtocol`."""
        self._head = None
        self._is_offer = self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers)
        if self._is_offer or self._is_full:
            return
        if len(self.pipeline) == MOST_PIPELINED:
            self._end_behind()
            return
        super().on_headers_complete()
        if self.pipeline:
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        """See `HttpToolsProtocol`."""
        if self._is_full:
            return
        super().on_body(body)
        if not self.pipeline:
            return
        if sum(len(waiting.body) for waiting, _ in self.pipeline) > MOST_PIPELINED_BYTES:
            self.pipeline.popleft()
            self._end_behind()
        self.flow.resume_reading()

    def on_message_complete(self) -> None:
        """See `HttpToolsProtocol`."""
        if not self._is_offer and not self._is_full:
            super().on_message_complete()

    def _end_behind(self) -> None:
        """Close the connection with the last answer that is still to be given."""
        self._is_full = True
        self.cycle = self.pipeline[0][0] if self.pipeline else self._running
        self.cycle.keep_alive = False

    def _feed(self, data: bytes) -> None:
        """Parse; the parser reads no body behind an offer of another protocol, as Java's client makes one by default
        (h2c), so such a request is read again without it.
        """
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if not self._is_offer:
                    return
                data = data[offer.args[0] :]
                head = self._head_without_offer()
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
                self.parser.feed_data(head)
            else:
                return

    def _head_without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, _without_chunks(cycle, app) if cycle.scope["http_version"] == "1.0" else app)


def _without_chunks(cycle: RequestResponseCycle, app: ASGI3Application) -> ASGI3Application:
    """HTTP/1.0 has no chunks (RFC 9112, 6.1): where the length of an answer is not known, its connection's end is its.

    uvicorn, which closes such a connection, would send chunks all the same.
    """

    async def served(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def send_plain(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.body":
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        cycle.chunked_encoding = False
        await app(scope, receive, send_plain)

    return served
