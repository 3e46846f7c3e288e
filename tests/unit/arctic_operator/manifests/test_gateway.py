"""The gateway's objects, and its configuration in a real HAProxy with leaders on loopback."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_api.inference import ArcticInferenceSpec
from arctic_cli.ports import free_ports
from arctic_operator.manifests import gateway
from arctic_operator.manifests.gateway import (
    GatewayShape,
    gateway_children,
    gateway_command,
    haproxy_config,
    leader_slots,
    service_url,
)
from arctic_operator.observed import Identity
from arctic_operator.settings import Settings

UID = "0a1b2c3d-0000-4000-8000-000000000000"
DEMO = Identity("ArcticInference", "default", "demo", UID)
SETTINGS = Settings(namespace="arctic-system", worker_image="worker", gateway_image="haproxy:2.8")
ALERTS = Path(__file__).parents[4] / "charts" / "arctic" / "templates" / "alerts.yaml"
PATIENCE = 20.0
HOST = "demo-leaders.default.svc.cluster.local"


def make_spec(**changes: Any) -> ArcticInferenceSpec:
    return ArcticInferenceSpec.model_validate({"model": {"training": "tiny"}, **changes})


def children(**changes: Any) -> dict[tuple[str, str], dict[str, Any]]:
    built = gateway_children(DEMO, make_spec(**changes), SETTINGS)
    return {(child["kind"], child["metadata"]["name"]): child for child in built}


class Leader:
    """A replica's leader as the gateway sees it: an API and a health port on an address of its own."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.ready = True
        self.health_seconds = 0.0
        self.checks = 0
        self.requests: list[bytes] = []
        self.next_chunk = threading.Event()
        self.release = threading.Event()
        self.servers: list[ThreadingHTTPServer] = []

    def start(self, api_port: int, health_port: int) -> None:
        for port, handler in ((api_port, self._api()), (health_port, self._health())):
            server = ThreadingHTTPServer((self.address, port), handler)
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            self.servers.append(server)

    def stop(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()
        self.servers.clear()

    def _health(leader) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Health(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                time.sleep(leader.health_seconds)
                self.send_response(200 if leader.ready and self.path == "/readyz" else 503)
                self.end_headers()
                leader.checks += 1

            def log_message(self, *_: Any) -> None:
                pass

        return Health

    def _api(leader) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Api(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                leader.requests.append(body)
                getattr(self, self.path.strip("/"))()

            def answer(self) -> None:
                content = leader.address.encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def held(self) -> None:
                leader.release.wait(PATIENCE)
                self.answer()

            def stream(self) -> None:
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for word in ("one", "two"):
                    self.wfile.write(f"{len(word):x}\r\n{word}\r\n".encode())
                    leader.next_chunk.wait(PATIENCE)
                self.wfile.write(b"0\r\n\r\n")

            def vanish(self) -> None:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        return Api


class Dns:
    """A name server that answers A questions with the addresses it holds (RFC 1035, no more than HAProxy asks)."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(4096)
            if not query:
                return
            end = query.index(b"\0", 12) + 5
            name = self._name(query[12 : end - 5])
            wants_a = struct.unpack(">H", query[end - 4 : end - 2])[0] == 1
            found = self.addresses if wants_a and name == HOST else []
            records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 5, 4) + socket.inet_aton(a) for a in found)
            header = query[:2] + struct.pack(">HHHHH", 0x8580, 1, len(found), 0, 0)
            self._socket.sendto(header + query[12:end] + records, client)

    @staticmethod
    def _name(encoded: bytes) -> str:
        labels, at = [], 0
        while at < len(encoded):
            labels.append(encoded[at + 1 : at + 1 + encoded[at]].decode().lower())
            at += 1 + encoded[at]
        return ".".join(labels)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stopper:
            stopper.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


class Gateway:
    """A running HAProxy, its leaders and its name server."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, health_port: int, leaders: list[Leader]) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.metrics_url = f"http://127.0.0.1:{health_port}"
        self.leaders = leaders

    def post(self, path: str, **arguments: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=PATIENCE, **({"content": b"{}"} | arguments))

    def queued(self) -> int:
        """Return how many requests wait, be it for any leader or for one."""
        values = re.findall(r"^haproxy_(?:backend|server)_current_queue\{.*\} (\d+)$", self.metrics(), re.MULTILINE)
        return sum(map(int, values))

    def metrics(self) -> str:
        return httpx.get(f"{self.metrics_url}/metrics").text

    def up(self) -> int:
        """Return how many leaders HAProxy has found and holds for healthy."""
        lines = self.metrics().splitlines()
        return sum(
            line.startswith("haproxy_server_status{") and 'state="UP"' in line and line.endswith(" 1") for line in lines
        )


@contextmanager
def run_gateway(folder: Path, *, leaders: int, requests_per_leader: int = 100) -> Iterator[Gateway]:
    """Run the configuration as it is built, but for its ports, its name server and shorter times."""
    port, api_port, health_port = free_ports(3)
    made = [Leader(f"127.0.0.{2 + index}") for index in range(leaders)]
    config = haproxy_config(GatewayShape(HOST, api_port, health_port, 16, requests_per_leader, 30))
    with ExitStack() as stack:
        dns = Dns()
        stack.callback(dns.close)
        for here, there in (
            (f"bind :{gateway.HTTP_PORT}", f"bind 127.0.0.1:{port}"),
            (f"bind :{health_port}", f"bind 127.0.0.1:{health_port}"),
            ("parse-resolv-conf", f"nameserver test 127.0.0.1:{dns.port}"),
            (f"grace {gateway.GRACE_SECONDS}s", "grace 1s"),
            ("timeout resolve 1s", "timeout resolve 100ms"),
            ("inter 1s", "inter 100ms"),
        ):
            assert config.count(here) == 1
            config = config.replace(here, there)
        path = folder / "haproxy.cfg"
        path.write_text(config)
        for leader in made:
            leader.start(api_port, health_port)
            stack.callback(leader.stop)
        dns.addresses = [leader.address for leader in made]
        log = stack.enter_context((folder / "haproxy.log").open("w"))
        process = subprocess.Popen(
            gateway_command(str(path)), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        stack.callback(kill_session, process)
        running = Gateway(process, port, health_port, made)
        wait_until(lambda: answers(running.metrics_url + "/healthz"), "the gateway's start")
        wait_until(lambda: running.up() == leaders, "the discovery of all leaders")
        for leader in made:
            wait_until(lambda leader=leader: leader.checks > 0, "a check")
        yield running
        for leader in made:
            leader.release.set()
            leader.next_chunk.set()


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """End the command at once, with what it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def haproxy() -> str:
    found = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    assert found, "HAProxy is missing: apt-get install --no-install-recommends haproxy"
    return found


@pytest.mark.parametrize("slots", [16, 1024])
def test_haproxy_takes_the_configuration_without_a_warning(haproxy: str, tmp_path: Path, slots: int) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text(haproxy_config(GatewayShape(HOST, 8000, 9441, slots, 512, 120)))
    checked = subprocess.run([haproxy, "-c", "-dW", "-f", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_requests_with_no_ready_leader_get_503_in_the_openai_form(haproxy: str, tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=0) as running:
        answer = running.post("/answer")
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "5"
        assert answer.headers["Content-Type"] == "application/json"
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answers(running.url + "/healthz"), "the gateway itself is well"


def test_the_gateway_serves_the_metrics_that_alerts_read(haproxy: str, tmp_path: Path) -> None:
    read = set(re.findall(r"haproxy_[a-z_]+", ALERTS.read_text()))
    assert read
    with run_gateway(tmp_path, leaders=0) as running:
        assert running.post("/answer").status_code == 503
        served = running.metrics()
    assert read <= set(re.findall(r"^haproxy_[a-z_]+", served, re.MULTILINE))
    assert 'haproxy_backend_http_responses_total{proxy="leaders",code="5xx"} 1' in served


def test_a_stream_is_passed_on_chunk_by_chunk(haproxy: str, tmp_path: Path) -> None:
    with (
        run_gateway(tmp_path, leaders=1) as running,
        httpx.stream("POST", running.url + "/stream", content=b"{}", timeout=PATIENCE) as answer,
    ):
        chunks = answer.iter_raw()
        assert next(chunks) == b"one", "the second chunk has not been sent yet"
        running.leaders[0].next_chunk.set()
        assert b"".join(chunks) == b"two"


def test_bodies_are_bounded(haproxy: str, tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=1) as running:
        announced = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=PATIENCE)
        announced.putrequest("POST", "/answer")
        announced.putheader("Content-Length", str(gateway.MAX_BODY_BYTES + 1))
        announced.endheaders()
        refused = announced.getresponse()
        assert (refused.status, json.load(refused)["error"]["code"]) == (413, "request_too_large")
        announced.close()
        unannounced = running.post("/answer", content=iter([b"{", b"}"]))
        assert (unannounced.status_code, unannounced.json()["error"]["code"]) == (411, "length_required")
        assert running.leaders[0].requests == []


def test_a_leader_that_is_gone_or_unready_gets_no_request_and_none_is_lost(haproxy: str, tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=2) as running:
        gone, kept = running.leaders
        gone.stop()
        answered = [running.post("/answer").text for _ in range(10)]
        assert answered == [kept.address] * 10, "a refused connection is tried again at another leader"
        kept.ready = False
        wait_until(lambda: running.post("/answer").status_code == 503, "leaving out an unready leader")
        kept.ready = True
        wait_until(lambda: running.post("/answer").status_code == 200, "its return")


def test_a_leader_too_busy_to_answer_a_check_at_once_stays(haproxy: str, tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=1) as running:
        busy = running.leaders[0]
        busy.health_seconds = 0.3
        before = busy.checks
        wait_until(lambda: busy.checks >= before + 4, "slow checks")
        assert running.post("/answer").text == busy.address


def test_a_request_that_reached_a_leader_is_never_sent_twice(haproxy: str, tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=2) as running:
        # In one piece: HAProxy could send again only what it has whole.
        host, _, port = running.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), PATIENCE) as connection:
            connection.sendall(b"POST /vanish HTTP/1.1\r\nHost: demo\r\nContent-Length: 2\r\n\r\n{}")
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert (answer.status, json.load(answer)["error"]["code"]) == (502, "bad_gateway")
            answer.close()
        assert sum(len(leader.requests) for leader in running.leaders) == 1


def test_requests_beyond_what_a_leader_takes_wait_for_it(haproxy: str, tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=1, requests_per_leader=1) as running:
        leader = running.leaders[0]
        statuses: list[int] = []
        clients = [
            threading.Thread(target=lambda: statuses.append(running.post("/held").status_code)) for _ in range(3)
        ]
        for client in clients:
            client.start()
        wait_until(lambda: running.queued() == 2, "queueing")
        assert len(leader.requests) == 1
        leader.release.set()
        for client in clients:
            client.join(PATIENCE)
        assert statuses == [200, 200, 200]


def test_a_gateway_told_to_stop_finishes_its_streams_and_loses_no_request(haproxy: str, tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=1) as running, httpx.Client(timeout=PATIENCE) as kept_alive:
        assert "Connection" not in kept_alive.post(running.url + "/answer", content=b"{}").headers
        with httpx.stream("POST", running.url + "/stream", content=b"{}", timeout=PATIENCE) as answer:
            chunks = answer.iter_raw()
            assert next(chunks) == b"one"
            running.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not answers(running.url + "/healthz"), "telling load balancers")
            late = kept_alive.post(running.url + "/answer", content=b"{}")
            assert (late.status_code, late.headers["Connection"]) == (200, "close")
            wait_until(lambda: refuses(running.url), "closing the listener")
            running.leaders[0].next_chunk.set()
            assert b"".join(chunks) == b"two"
        assert running.process.wait(PATIENCE) == 0


def refuses(url: str) -> bool:
    try:
        httpx.get(url)
    except httpx.ConnectError:
        return True
    return False


def test_the_gateway_of_a_service_is_these_objects() -> None:
    assert set(children()) == {
        ("ConfigMap", "demo-0a1b2-gateway"),
        ("Deployment", "demo-0a1b2-gateway"),
        ("PodDisruptionBudget", "demo-0a1b2-gateway"),
        ("Service", "demo-0a1b2-leaders"),
        ("Service", "demo"),
    }
    assert all(child["metadata"]["ownerReferences"][0]["uid"] == UID for child in children().values())
    json.dumps(list(children().values()))


def test_the_stable_address_leads_to_the_gateway_on_the_port_of_the_spec() -> None:
    built = children(service={"port": 80})
    service = built["Service", "demo"]["spec"]
    pod = built["Deployment", "demo-0a1b2-gateway"]["spec"]["template"]
    assert service["ports"] == [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    assert {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}["http"] == 8080
    assert service_url(DEMO, make_spec(service={"port": 80})) == "http://demo.default.svc:80"


def test_the_leaders_service_does_not_select_the_gateway() -> None:
    built = children()
    selector = built["Service", "demo-0a1b2-leaders"]["spec"]["selector"]
    assert (
        not selector.items()
        <= built["Deployment", "demo-0a1b2-gateway"]["spec"]["template"]["metadata"]["labels"].items()
    )


def test_a_changed_configuration_rolls_the_gateway_and_nothing_else_does() -> None:
    def template(**changes: Any) -> Any:
        return children(**changes)["Deployment", "demo-0a1b2-gateway"]["spec"]["template"]

    assert template() == template(replicas=3, model={"training": "other"})
    assert template() != template(replicas=40)
    assert template() != template(batching={"maxSequences": 8})


def test_the_pod_outlives_its_drain() -> None:
    pod = children(rollout={"drainTimeout": "90s"})["Deployment", "demo-0a1b2-gateway"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= gateway.GRACE_SECONDS + 90


@given(st.integers(1, 4000))
def test_there_are_slots_for_every_group(most_groups: int) -> None:
    assert most_groups <= leader_slots(most_groups) < max(gateway.MIN_SLOTS + 1, 2 * most_groups)
