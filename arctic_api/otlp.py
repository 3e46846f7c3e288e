"""Spans on their way to a collector, by OpenTelemetry's SDK over OTLP/HTTP. Imported only where traces are recorded.

They are sent from a thread, in batches, and lost while nobody takes them: who is watched waits for no watcher.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_SERVICE_NAME
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context
from opentelemetry.trace.status import Status, StatusCode

from arctic_api.tracing import Attributes, Place, Span

log = logging.getLogger(__name__)

TRACES_PATH = "/v1/traces"
END_SECONDS = 1.0
"""Time that the last spans of a process get; its end is what others wait for."""
SET_NS = 1_000_000
"""How far the system's clock and the process's may part before the former counts as set, as after a machine's sleep."""
_KINDS = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER}


class Sender:
    """A `Recorder` of one process. Further settings are OpenTelemetry's own variables, such as the sampler's."""

    def __init__(self, service: str, endpoint: str, about: Attributes) -> None:
        named = {"service.name": os.environ.get(OTEL_SERVICE_NAME) or service}
        self._ids = _Ids()
        self._exporter = _Quiet(endpoint)
        self._provider = TracerProvider(
            resource=Resource.create({**about, **named}), id_generator=self._ids, shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("arctic")
        self._wall = _Wall()

    def record(self, span: Span) -> Place:
        """See `tracing.record`."""
        wall = self._wall.offset_ns()
        with self._ids.given(span.under, span.place):
            told = self._tracer.start_span(
                span.name,
                _context(span.under),
                _KINDS[span.kind],
                span.attributes,
                [Link(_remote(link)) for link in span.links],
                start_time=wall + round(span.begun * 1e9),
            )
        if span.error:
            told.set_status(Status(StatusCode.ERROR, span.error))
        told.end(wall + round(span.ended * 1e9))
        made = told.get_span_context()
        return Place(made.trace_id, made.span_id, made.trace_flags.sampled)

    def end(self) -> None:
        """See `tracing.end`."""
        if self._exporter.away:
            return
        sending = threading.Thread(target=self._provider.force_flush, name="last spans", daemon=True)
        sending.start()
        sending.join(END_SECONDS)


class _Wall:
    """What the system's clock is ahead of the process's, one for all spans: else a part may begin before its whole.

    Two clocks are never read in one moment, so that each reading of both differs.
    """

    def __init__(self) -> None:
        self._offset_ns = _ahead_ns()

    def offset_ns(self) -> int:
        """Return it as it was first read, until the system's clock is set."""
        now = _ahead_ns()
        if abs(now - self._offset_ns) > SET_NS:
            self._offset_ns = now
        return self._offset_ns


def _ahead_ns() -> int:
    """Read it, and again where others had the processor between one clock and the other: it is right to `SET_NS`."""
    while True:
        before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        if after - before < SET_NS:
            return wall - after


def _remote(place: Place) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if place.sampled else TraceFlags.DEFAULT)
    return SpanContext(place.trace, place.span, is_remote=True, trace_flags=flags)


def _context(under: Place | None) -> Context:
    """Return the context that a span under this place is made in."""
    return set_span_in_context(NonRecordingSpan(_remote(under)), Context()) if under and under.span else Context()


class _Ids(RandomIdGenerator):
    """Draws ids, except those that are given for the span that this thread is making."""

    def __init__(self) -> None:
        self._given = threading.local()

    @contextmanager
    def given(self, under: Place | None, place: Place | None) -> Iterator[None]:
        """Give a span the trace that it is in, where it has no parent to tell, and its own id, where that is known."""
        known = place or under
        self._given.trace = known.trace if known else 0
        self._given.span = place.span if place else 0
        try:
            yield
        finally:
            self._given.trace = self._given.span = 0

    def generate_trace_id(self) -> int:
        """See `IdGenerator`."""
        return self._given.trace or super().generate_trace_id()

    def generate_span_id(self) -> int:
        """See `IdGenerator`."""
        return self._given.span or super().generate_span_id()

    def is_trace_id_random(self) -> bool:
        """See `IdGenerator`."""
        return not self._given.trace


class _Quiet(SpanExporter):
    """Says once that nobody takes the spans, with the library's reason, and not again before somebody did."""

    def __init__(self, endpoint: str) -> None:
        self.away = False
        self._endpoint = endpoint
        self._exporter = OTLPSpanExporter(endpoint.rstrip("/") + TRACES_PATH)
        self._words = _FirstWords()
        # Else each batch and each attempt to send one would have a line, and each span that finds the queue full.
        for name in ("opentelemetry.exporter.otlp", "opentelemetry.sdk._shared_internal"):
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [self._words], False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter`."""
        self._words.said = ""
        result = self._exporter.export(spans)
        away = result is not SpanExportResult.SUCCESS
        if away and not self.away:
            log.warning("traces are lost while %s does not take them: %s", self._endpoint, self._words.said)
        if self.away and not away:
            log.info("%s takes traces again", self._endpoint)
        self.away = away
        return result

    def shutdown(self) -> None:
        """See `SpanExporter`."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


class _FirstWords(logging.Handler):
    """Keeps the first thing that was said: of several attempts to send, it is what has the reason."""

    said = ""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self.said = self.said or record.getMessage()
