"""Plain HTTP for what can't do mutual TLS: Prometheus (`/metrics`) and the kubelet (`/livez`, `/readyz`)."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from arctic_api.world import PodWorld
from arctic_workers.control.expiry import CertificateExpiry

log = logging.getLogger(__name__)


class Heartbeat:
    """Beaten by a main loop; dead when that loop hangs."""

    def __init__(self, limit_seconds: float) -> None:
        """Begin as just beaten."""
        self._limit = limit_seconds
        self.beat()

    def beat(self) -> None:
        """Say that the main loop goes round."""
        self._last = time.monotonic()

    def age(self) -> float:
        """Return the seconds since the last beat."""
        return time.monotonic() - self._last

    def alive(self) -> bool:
        """Tell whether the last beat is younger than the limit."""
        return self.age() < self._limit


class _Server(ThreadingHTTPServer):
    """Listens on both families where an address of the machine has both."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if not address[0] and socket.has_dualstack_ipv6():
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        log.debug("A client of the metrics port went away", exc_info=True)


class ProbeServer:
    """Serves a registry's metrics and the two probes on background threads."""

    def __init__(
        self,
        world: PodWorld,
        registry: CollectorRegistry,
        *,
        alive: Callable[[], bool],
        ready: Callable[[], bool],
        hooks: Mapping[str, Callable[[], bool]] | None = None,
    ) -> None:
        """Prepare to serve on `world.ports.metrics` (0: a free one), on loopback only where the world has no TLS.

        `hooks` are further paths, which the kubelet asks before it stops a container: each takes its time to answer.
        """
        registry.register(CertificateExpiry(world))
        self._address = ("" if world.tls_folder is not None else "127.0.0.1", world.ports.metrics)
        probes = {"/livez": alive, "/readyz": ready, **(hooks or {})}

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                    self._answer(HTTPStatus.OK, content_type, encode(registry))
                elif path in probes:
                    status = _probe(path, probes[path])
                    self._answer(status, "text/plain", b"ok\n" if status == HTTPStatus.OK else b"no\n")
                else:
                    self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"There are /metrics, /livez and /readyz.\n")

            def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                log.debug(format, *args)

        self._handler = Handler

    def __enter__(self) -> "ProbeServer":
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def start(self) -> int:
        """Serve; return the port. OSError if it is taken."""
        try:
            self._server = _Server(self._address, self._handler)
        except OSError as error:
            raise OSError(error.errno, f"Port {self._address[1]} for metrics can't be listened on: {error}") from None
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="probes", daemon=True)
        self._thread.start()
        self.port: int = self._server.server_address[1]
        return self.port

    def stop(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _probe(path: str, healthy: Callable[[], bool]) -> HTTPStatus:
    try:
        return HTTPStatus.OK if healthy() else HTTPStatus.SERVICE_UNAVAILABLE
    except Exception:
        log.exception("The probe %s failed", path)
        return HTTPStatus.SERVICE_UNAVAILABLE
