"""Spans on their way to a real collector; where there is none; and where nobody asked for any."""

import logging
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from collector import Collector, collecting

import arctic_api
from arctic_api import tracing
from arctic_api.tracing import Place, Span
from arctic_workers.control.ports import free_ports

pytestmark = pytest.mark.processes

UID = "0a1b2c3d-0000-4000-8000-000000000001"
TRACE = UID.replace("-", "")
PARENT = f"{'ab' * 16}-{'cd' * 8}"


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Send at once."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    yield
    tracing.end()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.mark.parametrize(
    ("header", "place"),
    [
        (f"00-{PARENT}-01", Place(0xAB * (256**16 - 1) // 255, 0xCD * (256**8 - 1) // 255)),
        (f"00-{PARENT}-00", Place(0xAB * (256**16 - 1) // 255, 0xCD * (256**8 - 1) // 255, sampled=False)),
        (f"cc-{PARENT}-01-what-a-later-version-says", Place.read(f"00-{PARENT}-01")),
        (f"00-{PARENT}-01-more", None),
        (f"ff-{PARENT}-01", None),
        (f"00-{PARENT.upper()}-01", None),
        (f"00-{'0' * 32}-{'cd' * 8}-01", None),
        (f"00-{'ab' * 16}-{'0' * 16}-01", None),
        (f"00-{PARENT}", None),
        ("", None),
    ],
)
def test_a_traceparent_is_read_as_its_standard_says(header: str, place: Place | None) -> None:
    assert Place.read(header) == place


def test_an_objects_trace_has_its_uid_and_what_has_a_name_is_found_by_it(collector: Collector) -> None:
    tracing.begin("tests", collector.url, {"arctic.name": "tiny"})
    assert tracing.is_on()
    now = time.monotonic()
    made = tracing.record(Span("make", now - 2, now - 1, under=Place.of(UID), place=Place.of(UID, "1")))
    assert made == Place.of(UID, "1")
    tracing.record(Span("run", now - 1, now, under=Place.of(UID, "1"), error="it broke", attributes={"tokens": 7}))
    request = tracing.record(Span("request", now, now, links=[Place.of(UID, "1")], kind="server"))
    asked = Place.read(f"00-{PARENT}-01")
    tracing.record(Span("asked", now, now, under=asked))
    assert tracing.record(Span("unsampled", now, now, under=Place.read(f"00-{PARENT}-00"))) is not None
    tracing.end()
    spans = {span.name: span for span in collector.wait_for("make", "run", "request", "asked")}
    assert set(spans) == {"make", "run", "request", "asked"}
    assert (spans["make"].trace, spans["make"].parent, spans["make"].error) == (TRACE, "", "")
    assert (spans["run"].trace, spans["run"].parent) == (TRACE, spans["make"].id)
    assert (spans["run"].error, spans["run"].attributes) == ("it broke", {"tokens": 7})
    assert spans["run"].ended - spans["run"].begun == pytest.approx(1e9, abs=10)
    assert abs(spans["run"].ended - time.time_ns()) < PATIENT_NS
    assert spans["request"].links == ((TRACE, spans["make"].id),)
    assert request is not None
    assert (spans["request"].trace, spans["request"].kind) == (f"{request.trace:032x}", 2)
    assert spans["request"].trace not in (TRACE, "ab" * 16)
    assert (spans["asked"].trace, spans["asked"].parent) == ("ab" * 16, "cd" * 8)
    assert spans["make"].about["service.name"] == "tests"
    assert spans["make"].about["arctic.name"] == "tiny"
    assert not tracing.is_on()


PATIENT_NS = 600 * 10**9
"""Wrong clocks and units are years off."""


def test_a_sampler_leaves_out_requests_and_never_a_part_of_an_objects_trace(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    tracing.begin("tests", collector.url, {})
    request = tracing.record(Span("request", 0, 1))
    tracing.record(Span("queue", 0, 1, under=request))
    tracing.record(Span("load", 0, 1, under=Place.of(UID, "g0")))
    collector.wait_for("load")
    assert [span.name for span in collector.spans] == ["load"]


def test_spans_of_one_moment_have_one_time_until_the_clock_is_set(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracing.begin("tests", collector.url, {})
    now = time.monotonic()
    for count in range(100):
        tracing.record(Span(f"early {count}", now, now))
    clock, waits = time.time_ns, iter([0.01])

    def set_back() -> int:
        moment = clock() - 3600 * 10**9
        time.sleep(next(waits, 0))  # others have the processor before the next clock is read
        return moment

    monkeypatch.setattr(time, "time_ns", set_back)
    for count in range(100):
        tracing.record(Span(f"late {count}", now, now))
    tracing.end()
    spans = collector.wait_for(*(f"{part} {count}" for part in ("early", "late") for count in range(100)))
    (early,) = {span.begun for span in spans if span.name.startswith("early")}
    (late,) = {span.begun for span in spans if span.name.startswith("late")}
    assert early - late == pytest.approx(3600 * 10**9, abs=10**8)


def test_a_uid_that_is_no_uuid_names_a_trace_too() -> None:
    assert Place.of("any text").trace == Place.of("any text", "1").trace != Place.of("another").trace


def test_a_collector_that_is_away_is_told_of_once_and_once_more_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")  # there is time to try again
    caplog.set_level(logging.INFO)
    (port,) = free_ports(1)
    with collecting(port) as gone:
        pass
    tracing.begin("tests", gone.url, {})
    sender = tracing._recorder
    for _ in range(2):
        tracing.record(Span("lost", 0, 0))
        sender._provider.force_flush()
    with collecting(port) as back:
        tracing.record(Span("kept", 0, 0))
        back.wait_for("kept")
        sender._provider.force_flush()
    lost, again = (record for record in caplog.records if record.name.startswith(("arctic", "opentelemetry")))
    assert (lost.levelname, again.levelname) == ("WARNING", "INFO")
    assert lost.getMessage().startswith(f"traces are lost while {gone.url} does not take them: ")
    assert "Connection refused" in lost.getMessage()
    assert again.getMessage() == f"{gone.url} takes traces again"


def test_what_is_traced_does_not_wait_for_a_collector_that_hangs(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")  # nor does what is sent hang on to it
    collector.go.clear()
    tracing.begin("tests", collector.url, {})
    for _ in range(10_000):  # more than may wait to be sent: this ends, or the test does not
        tracing.record(Span("step", 0, 0))


def test_without_the_library_one_sentence_says_so_and_work_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.context", None)
    monkeypatch.delitem(sys.modules, "arctic_api.otlp", raising=False)
    monkeypatch.delattr(arctic_api, "otlp", raising=False)
    tracing.begin("tests", "http://127.0.0.1:1", {})
    assert tracing.record(Span("lost", 0, 0)) is None
    (said,) = (record for record in caplog.records if record.name == tracing.__name__)
    assert "no traces are sent to http://127.0.0.1:1" in said.getMessage()
    assert "arctic-kubernetes[tracing]" in said.getMessage()


UNASKED = """
import sys
import arctic_operator.__main__, arctic_workers.inference.leader, arctic_workers.training.supervisor
from arctic_api import tracing
from arctic_api.tracing import Span
tracing.begin("tests", "", {})
assert not tracing.is_on()
assert tracing.record(Span("nothing", 0, 0)) is None
tracing.end()
print([name for name in sys.modules if name.startswith(("opentelemetry", "arctic_api.otlp"))])
"""


def test_unless_somebody_asks_for_traces_nothing_of_them_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", UNASKED], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
