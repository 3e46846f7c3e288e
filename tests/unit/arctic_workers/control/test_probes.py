import threading
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry, Counter

from arctic_api.world import InferenceGroup, Ports
from arctic_workers.control.probes import Heartbeat, ProbeServer


def serve(world: InferenceGroup, alive: Callable[[], bool] = bool, ready: Callable[[], bool] = bool) -> ProbeServer:
    registry = CollectorRegistry()
    Counter("arctic_test_steps", "Steps.", registry=registry).inc(3)
    return ProbeServer(world, registry, alive=alive, ready=ready)


def get(port: int, path: str, accept: str = "*/*") -> tuple[int, str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def test_metrics_are_served_in_the_format_that_is_asked_for(group: InferenceGroup) -> None:
    with serve(group) as server:
        status, kind, body = get(server.port, "/metrics")
        assert (status, kind.split(";")[0]) == (200, "text/plain")
        assert "arctic_test_steps_total 3.0\n" in body
        _, kind, body = get(server.port, "/metrics?x=1", "application/openmetrics-text; version=1.0.0")
        assert kind.startswith("application/openmetrics-text")
        assert body.endswith("# EOF\n")


def test_probes_follow_what_they_ask(group: InferenceGroup) -> None:
    alive, ready = threading.Event(), threading.Event()
    with serve(group, alive.is_set, ready.is_set) as server:
        assert [get(server.port, path)[0] for path in ("/livez", "/readyz")] == [503, 503]
        alive.set()
        assert [get(server.port, path)[0] for path in ("/livez", "/readyz")] == [200, 503]
        ready.set()
        assert [get(server.port, path)[0] for path in ("/livez", "/readyz")] == [200, 200]


def test_a_probe_that_fails_is_a_no(group: InferenceGroup) -> None:
    def broken() -> bool:
        raise RuntimeError("no device")

    with serve(group, broken) as server:
        assert get(server.port, "/livez")[0] == 503


def test_another_path_says_which_there_are(group: InferenceGroup) -> None:
    with serve(group) as server:
        status, _, body = get(server.port, "/")
    assert status == 404
    assert "/metrics" in body


def test_a_hung_main_loop_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("arctic_workers.control.probes.time.monotonic", lambda: clock[0])
    heartbeat = Heartbeat(30)
    clock[0] += 29
    assert heartbeat.alive()
    clock[0] += 1
    assert not heartbeat.alive()
    assert heartbeat.age() == 30
    heartbeat.beat()
    assert heartbeat.alive()


def test_a_taken_port_is_named(group: InferenceGroup) -> None:
    with serve(group) as server:
        second = group.model_copy(update={"ports": Ports(metrics=server.port)})
        with pytest.raises(OSError, match=f"Port {server.port} for metrics"):
            serve(second).start()


def test_without_certificates_only_this_machine_is_served(group: InferenceGroup) -> None:
    with serve(group) as server, pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.2:{server.port}/livez", timeout=10)


def test_in_a_cluster_every_address_is_served(group: InferenceGroup) -> None:
    with serve(group.model_copy(update={"tls_folder": "/etc/arctic/tls"}), alive=lambda: True) as server:
        assert urllib.request.urlopen(f"http://127.0.0.2:{server.port}/livez", timeout=10).status == 200
