import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from arctic_cli.demo import Steps, ask, chat


def test_a_step_is_noted_with_its_seconds_for_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCTIC_PHASES", str(tmp_path / "phases"))
    steps = Steps(2)
    for title in ("install", "train: kubectl apply"):
        with steps.step(title):
            pass
    notes = [json.loads(line) for line in (tmp_path / "phases").read_text().splitlines()]
    assert [note["phase"] for note in notes] == ["install", "train"]
    assert all(isinstance(note["seconds"], float) for note in notes)


class Answer(BaseHTTPRequestHandler):
    """Completes and answers everything by saying it again."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choice = {"message": asked["messages"][0]} if self.path == "/v1/chat/completions" else {"text": asked["prompt"]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [choice]}).encode())

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def served() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_endpoint_is_asked_past_the_machines_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with served() as address:
        assert ask(address, "tiny", "CREATE") == "CREATE"


def test_a_question_is_asked_in_chat() -> None:
    with served() as address:
        assert chat(address, "tiny", "Who?") == "Who?"
