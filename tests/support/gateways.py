"""A real HAProxy with the gateway's configuration, stand-in leaders on loopback, and a name server."""

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

from arctic_api.keys import digest_of
from arctic_api.world import Ports
from arctic_operator.manifests import gateway
from arctic_operator.manifests.gateway import GatewayShape, gateway_command, haproxy_config
from arctic_operator.manifests.gateway_lua import LUA, LUA_FILE
from arctic_workers.control.ports import free_ports

PATIENCE = 60.0
HOST = "demo-leaders.default.svc.cluster.local"
CANARY_HOST = "demo-canary.default.svc.cluster.local"


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

            def do_GET(self) -> None:
                self.answer()

            do_OPTIONS = do_GET

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                leader.requests.append(body)
                getattr(self, self.path.strip("/"), self.answer)()

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

            def break_off(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                self.wfile.write(b"one")
                self.vanish()

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
        self.canaries: list[str] = []
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
            found = {HOST: self.addresses, CANARY_HOST: self.canaries}.get(name, []) if wants_a else []
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

    def __init__(
        self, process: subprocess.Popen[bytes], port: int, health_port: int, leaders: list[Leader], dns: Dns
    ) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.metrics_url = f"http://127.0.0.1:{health_port}"
        self.leaders = leaders
        self.dns = dns

    def post(self, path: str, **arguments: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=PATIENCE, **({"content": b"{}"} | arguments))

    def waiting(self) -> int:
        """Return how many requests wait, as the gateway tells the operator."""
        return int(self._get(gateway.WAITING_PATH).json()["waiting"])

    def queued(self) -> int:
        """Return how many requests wait, be it for any leader or for one."""
        values = re.findall(r"^haproxy_(?:backend|server)_current_queue\{.*\} (\d+)$", self.metrics(), re.MULTILINE)
        return sum(map(int, values))

    def metrics(self) -> str:
        return self._get("/metrics").text

    def _get(self, path: str) -> httpx.Response:
        return httpx.get(self.metrics_url + path, timeout=PATIENCE)

    def up(self) -> int:
        """Return how many leaders HAProxy has found and holds for healthy."""
        lines = self.metrics().splitlines()
        return sum(
            line.startswith("haproxy_server_status{") and 'state="UP"' in line and line.endswith(" 1") for line in lines
        )


def find_haproxy() -> str:
    found = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    assert found, "HAProxy is missing: apt-get install --no-install-recommends haproxy"
    return found


@contextmanager
def run_gateway(
    folder: Path,
    *,
    leaders: int,
    requests_per_leader: int = 100,
    queue_timeout: str = "60s",
    beside: Ports | None = None,
    keys: list[str] | None = None,
    origins: tuple[str, ...] = (),
    canaries: int = 0,
    hold_seconds: int = 0,
    hold_requests: int = 0,
    begin_seconds: int = 0,
    connections: int = gateway.CONNECTIONS,
    everywhere: bool = False,
) -> Iterator[Gateway]:
    """Run the configuration as it is built, but for its ports, its name server and shorter times.

    The last `canaries` of the leaders are a canary's. It listens on loopback alone, unless `everywhere`.
    `beside` are the ports of a real leader on 127.0.0.1, which is found too; the times of checks are then as built.
    """
    find_haproxy()
    port, metrics_port, *ports = free_ports(4)
    api_port, health_port = (beside.http, beside.metrics) if beside else ports
    made = [Leader(f"127.0.0.{2 + index}") for index in range(leaders)]
    shape = GatewayShape(HOST, CANARY_HOST, api_port, health_port, 16, requests_per_leader, 30)
    asked = shape._replace(
        locked=keys is not None, origins=origins, hold_seconds=hold_seconds, hold_requests=hold_requests
    )
    config = haproxy_config(asked, connections)
    (folder / LUA_FILE).write_text(LUA)
    write_keys(folder, keys or [])
    any_address = f"${{{gateway.ANY_VARIABLE}}}"
    address = any_address if everywhere else "127.0.0.1"
    with ExitStack() as stack:
        dns = Dns()
        stack.callback(dns.close)
        for here, there in (
            (f"{any_address}:{gateway.HTTP_PORT}", f"{address}:{port}"),
            (f"{any_address}:{health_port}", f"{address}:{metrics_port}"),
            (f"{gateway.CONFIG_FOLDER}/{LUA_FILE}", str(folder / LUA_FILE)),
            (f"{gateway.CONFIG_FOLDER}/{gateway.CANARY_FILE}", str(folder / gateway.CANARY_FILE)),
            (f"{gateway.CONFIG_FOLDER}/{gateway.HOLD_FILE}", str(folder / gateway.HOLD_FILE)),
            (f"{gateway.KEYS_FOLDER}/{gateway.KEYS_FILE}", str(folder / gateway.KEYS_FILE)),
            ("parse-resolv-conf", f"nameserver test 127.0.0.1:{dns.port}"),
            (f"grace {gateway.GRACE_SECONDS}s", "grace 5s"),
            (f"BEGIN_SECONDS {gateway.BEGIN_SECONDS}", f"BEGIN_SECONDS {begin_seconds}"),
            ("timeout resolve 1s", "timeout resolve 100ms"),
            ("timeout queue 60s", f"timeout queue {queue_timeout}"),
            ("inter 1s", "inter 1s" if beside else "inter 100ms"),
        ):
            assert config.count(here) in (1, 2), here
            config = config.replace(here, there)
        path = folder / "haproxy.cfg"
        path.write_text(config)
        for leader in made:
            leader.start(api_port, health_port)
            stack.callback(leader.stop)
        addresses = [leader.address for leader in made]
        dns.addresses = [*(["127.0.0.1"] if beside else []), *addresses[: leaders - canaries]]
        dns.canaries = addresses[leaders - canaries :]
        log = stack.enter_context((folder / "haproxy.log").open("w"))
        process = subprocess.Popen(
            gateway_command(str(path)), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        stack.callback(kill_session, process)
        running = Gateway(process, port, metrics_port, made, dns)
        wait_until(lambda: answers(running.metrics_url + "/healthz"), "the gateway's start")
        wait_until(lambda: running.up() == len(dns.addresses) + len(dns.canaries), "the discovery of all leaders")
        wait_until(lambda: all(leader.checks for leader in made), "a check of each leader")
        yield running
        for leader in made:
            leader.release.set()
            leader.next_chunk.set()


def write_keys(folder: Path, keys: list[str]) -> None:
    """Write what the gateway reads of the Secret with the digests, in one go as the kubelet does."""
    whole = folder / "digests.new"
    whole.write_text("".join(f"{digest_of(key.encode())}\n" for key in keys))
    whole.replace(folder / gateway.KEYS_FILE)


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """End the command at once, with what it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=PATIENCE).status_code == 200
    except httpx.TransportError:
        return False
