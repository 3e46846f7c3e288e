"""What commands say where the kubeconfig names something that is no API server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from arctic_cli.main import main

PAGE = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """What answers any request; it may be changed."""
    given: dict[str, object] = {"status": 200, "type": "text/html; charset=utf-8", "body": PAGE}

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = str(given["body"]).encode()
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(int(str(given["status"])))
            self.send_header("Content-Type", str(given["type"]))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_PATCH = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    config = {
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (tmp_path / "config").write_text(json.dumps(config))  # which is YAML
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    yield given
    server.shutdown()
    server.server_close()


COMMANDS = [
    *("status", "status training tiny", "logs training tiny", "chat tiny hello", "drain tiny"),
    *("pause tiny", "resume tiny", "stop tiny", "checkpoint tiny", "extend tiny --stage general --tokens 2M"),
]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/html; charset=utf-8", PAGE),
        ("application/json", PAGE),
        ("application/octet-stream", PAGE),
        ("application/json", '{"login": "https://sso.example.com"}'),
    ],
)
def test_a_proxys_page_to_log_in_is_no_object(answer: dict[str, object], kind: str, body: str) -> None:
    answer |= {"type": kind, "body": body}
    for command in COMMANDS:
        told = CliRunner().invoke(main, command.split())
        assert told.exit_code == 1
        [said] = told.output.splitlines()
        assert said.startswith("Error: what answers at http://127.0.0.1:")
        assert "is no API server, but perhaps a proxy that wants a login" in said


def test_a_proxys_page_about_an_error_is_told_by_its_status(answer: dict[str, object]) -> None:
    answer |= {"status": 502}
    for command in COMMANDS:
        told = CliRunner().invoke(main, command.split())
        assert (told.exit_code, told.output) == (1, "Error: 502 Bad Gateway\n")
