"""A connection of the HTTP API: uvicorn's with httptools, which costs a streamed token a tenth less than with h11."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD_BYTES = 64 * 1024
"""Of a request's line and headers: httptools itself keeps however much is sent."""


class Connection(HttpToolsProtocol):
    """Ends with 400 where a request's head goes on for ever."""

    _head: int | None = None
    """Bytes of the head that is being read, but for those that it began with; None while none is."""

    def data_received(self, data: bytes) -> None:
        """Read on."""
        before = self._head
        super().data_received(data)
        if before is None or self._head != before or self.transport.is_closing():
            return
        self._head += len(data)
        if self._head > MOST_HEAD_BYTES:
            self.send_400_response(f"The request's line and headers are larger than {MOST_HEAD_BYTES >> 10} KiB.")

    def on_message_begin(self) -> None:
        """See `HttpToolsProtocol`."""
        self._head = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See `HttpToolsProtocol`."""
        self._head = None
        super().on_headers_complete()
