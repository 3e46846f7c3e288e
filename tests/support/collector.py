"""A collector of traces: it takes OTLP over HTTP, as OpenTelemetry's does, and keeps what came."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

PATIENCE = 120.0


@dataclass(frozen=True)
class Span:
    """As it came; ids are hexadecimal, times are nanoseconds since 1970."""

    name: str
    trace: str
    id: str
    parent: str
    begun: int
    ended: int
    kind: int
    error: str
    links: tuple[tuple[str, str], ...]
    attributes: dict[str, Any]
    about: dict[str, Any]
    """Attributes of the process that it is from."""


class Collector:
    """Takes what comes, for as long as it is not told to `hold` it."""

    def __init__(self, port: int = 0) -> None:
        self.spans: list[Span] = []
        self.raw = b""
        self.go = threading.Event()
        self.go.set()
        self._came = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def wait_for(self, *names: str) -> list[Span]:
        """Return all spans once there is one of each name."""
        self._wait(lambda: set(names) <= {span.name for span in self.spans})
        return list(self.spans)

    def request(self, number: str) -> Span:
        """Return the span of a request that has this id, once it is there."""

        def found() -> Iterator[Span]:
            return (span for span in self.spans if span.attributes.get("arctic.request_id") == number)

        self._wait(lambda: any(found()))
        return next(found())

    def _wait(self, condition: Callable[[], bool]) -> None:
        with self._came:
            assert self._came.wait_for(condition, PATIENCE), f"there are {[span.name for span in self.spans]}"

    def one(self, name: str) -> Span:
        """Return the only span of this name, once it is there."""
        (span,) = (span for span in self.wait_for(name) if span.name == name)
        return span

    def close(self) -> None:
        self.go.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(collector) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.go.wait(PATIENCE)
                assert self.path == "/v1/traces"
                with collector._came:
                    collector.raw += body
                    collector.spans += spans_of(ExportTraceServiceRequest.FromString(body))
                    collector._came.notify_all()
                answer = ExportTraceServiceResponse().SerializeToString()
                with suppress(ConnectionError):  # of who has not waited
                    self.send_response(200)
                    self.send_header("Content-Type", "application/x-protobuf")
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    """Run a collector."""
    collector = Collector(port)
    try:
        yield collector
    finally:
        collector.close()


def spans_of(request: ExportTraceServiceRequest) -> list[Span]:
    return [
        Span(
            span.name,
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            span.kind,
            span.status.message,
            tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
            plain(span.attributes),
            plain(resource.resource.attributes),
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def plain(attributes: Sequence[KeyValue]) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None
