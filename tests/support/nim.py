"""A stand-in for NVIDIA's NIM that speaks as much of its HTTP as we use: the paths of 1.x and its metrics' names.

As a program it reads NIM's variables, and ends at once on SIGTERM whatever it is doing. It needs no more than Python.
"""

import http.server
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

_BOUNDS = (0.01, 0.1, 1.0, 10.0)
_HISTOGRAMS = ("time_to_first_token_seconds", "time_per_output_token_seconds", "e2e_request_latency_seconds")


class NimServer(http.server.ThreadingHTTPServer):
    """Serves on a port of loopback, or of all addresses."""

    daemon_threads = True

    def __init__(self, port: int, model: str, host: str = "127.0.0.1") -> None:
        super().__init__((host, port), _Handler)
        self.model = model
        self.healthy = True
        self.with_metrics = True
        self.go = threading.Event()
        """Without it no request ends."""
        self.go.set()
        self.asked: list[dict[str, Any]] = []
        self.running = 0
        self.finished = 0
        self.tokens = 0
        self.times: dict[str, list[float]] = {name: [] for name in _HISTOGRAMS}
        self.lock = threading.Lock()

    def start(self) -> "NimServer":
        """Serve in a thread."""
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def end(self) -> None:
        """Stop listening; requests that run are not waited for."""
        self.shutdown()
        self.server_close()

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return an answer after a tenth of a second for each word of the prompt, which the answer repeats."""
        begin = time.monotonic()
        with self.lock:
            self.asked.append(request)
            self.running += 1
        words = str(request["prompt"]).split()[: request["max_tokens"]]
        time.sleep(0.1 * len(words))
        self.go.wait()
        with self.lock:
            self.running -= 1
            self.finished += 1
            self.tokens += len(words)
            for name in _HISTOGRAMS:
                self.times[name].append(time.monotonic() - begin)
        choice = {"index": 0, "text": " ".join(words), "finish_reason": "length"}
        return {"id": "cmpl-1", "object": "text_completion", "model": self.model, "choices": [choice]}

    def metrics(self) -> str:
        """Return the metrics as NIM 1.x writes them."""
        label = f'model_name="{self.model}"'
        with self.lock:
            lines = [
                "# TYPE num_requests_running gauge",
                f"num_requests_running{{{label}}} {self.running:.1f}",
                "# TYPE num_requests_waiting gauge",
                f"num_requests_waiting{{{label}}} 0.0",
                "# TYPE gpu_cache_usage_perc gauge",
                f"gpu_cache_usage_perc{{{label}}} {self.running / 10}",
                "# TYPE generation_tokens_total counter",
                f"generation_tokens_total{{{label}}} {self.tokens:.1f}",
                "# TYPE request_finish_total counter",
                f'request_finish_total{{finished_reason="length",{label}}} {self.finished:.1f}',
            ]
            for name, times in self.times.items():
                lines.append(f"# TYPE {name} histogram")
                for bound in (*_BOUNDS, float("inf")):
                    written = "+Inf" if bound == float("inf") else str(bound)
                    count = sum(seconds <= bound for seconds in times)
                    lines.append(f'{name}_bucket{{le="{written}",{label}}} {count:.1f}')
                lines += [f"{name}_count{{{label}}} {len(times):.1f}", f"{name}_sum{{{label}}} {sum(times)}"]
        return "\n".join(lines) + "\n"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: NimServer

    def do_GET(self) -> None:
        nim = self.server
        if self.path in ("/v1/health/ready", "/v1/health/live"):
            self._answer(200 if nim.healthy or self.path.endswith("live") else 503, {"message": "Service is live."})
        elif self.path == "/v1/models":
            self._answer(200, {"object": "list", "data": [{"id": nim.model, "object": "model"}]})
        elif self.path == "/v1/metrics" and nim.with_metrics:
            self._write(200, "text/plain; version=0.0.4", nim.metrics())
        else:
            self._answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/completions" or request["model"] != self.server.model:
            self._answer(404, {"message": f"The model `{request['model']}` does not exist."})
            return
        self._answer(200, self.server.complete(request))

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        self._write(status, "application/json", json.dumps(content))

    def _write(self, status: int, kind: str, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    assert os.environ["NGC_API_KEY"], "NGC_API_KEY is empty"
    Path(os.environ["NIM_CACHE_PATH"], "model").touch()
    print(f"uid {os.getuid()}, tensor parallel {os.environ['NIM_TENSOR_PARALLEL_SIZE']}", flush=True)
    NimServer(int(os.environ["NIM_SERVER_PORT"]), os.environ["NIM_SERVED_MODEL_NAME"], "").serve_forever()
