"""`arctic logs`, with the real client, from an API server that answers as real ones do before and while a pod runs."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from arctic_cli import logs as module
from arctic_cli.main import main

POD = {"metadata": {"name": "tiny-a1-0", "labels": {}}, "spec": {"containers": [{"name": "worker"}]}}
Answer = Callable[[BaseHTTPRequestHandler], None]


def says(code: int, message: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        body = json.dumps({"kind": "Status", "message": message, "code": code}).encode()
        request.send_response(code)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def writes(*lines: str, breaks: bool = False) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for line in lines:
            request.wfile.write(f"{len(line) + 1:x}\r\n{line}\n\r\n".encode())
        if not breaks:
            request.wfile.write(b"0\r\n\r\n")

    return answer


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Answer]]:
    """What the API server answers, one after the other, to who asks for the log of the only pod."""
    given: list[Answer] = []

    class Server(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer = given.pop(0) if "/log" in self.path else says_pods
            answer(self)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    def says_pods(request: BaseHTTPRequestHandler) -> None:
        writes(json.dumps({"items": [POD]}))(request)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    config = {
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    yield given
    server.shutdown()
    server.server_close()


def logs(*options: str) -> Result:
    return CliRunner().invoke(main, ["logs", "training", "tiny", *options])


WAITING = 'container "worker" in pod "tiny-a1-0" is waiting to start: ContainerCreating'


def test_who_follows_waits_for_a_pod_to_start_and_is_told_once_what_for(answers: list[Answer]) -> None:
    unplaced = says(400, "pod tiny-a1-0 does not have a host assigned")
    answers += [unplaced, says(400, WAITING), says(400, WAITING), writes("one", "two")]
    result = logs("-f")
    assert (result.exit_code, result.stdout) == (0, "tiny-a1-0: one\ntiny-a1-0: two\n")
    assert result.stderr.count(WAITING) == 1
    assert "does not have a host assigned" in result.stderr


def test_who_does_not_follow_is_told_that_there_is_no_log_yet(answers: list[Answer]) -> None:
    answers += [says(400, WAITING)]
    result = logs()
    assert (result.exit_code, result.stdout) == (1, "")
    assert WAITING in result.stderr


@pytest.mark.parametrize("options", [[], ["-f"]])
def test_a_log_that_breaks_off_is_an_error_behind_what_came_of_it(answers: list[Answer], options: list[str]) -> None:
    answers += [writes("one", breaks=True)]
    result = logs(*options)
    assert (result.exit_code, result.stdout) == (1, "tiny-a1-0: one\n")
    assert isinstance(result.exception, SystemExit)
    assert "the cluster can't be reached" in result.stderr


def test_a_pod_that_goes_while_it_is_waited_for_is_an_error(answers: list[Answer]) -> None:
    answers += [says(400, WAITING), says(404, 'pods "tiny-a1-0" not found')]
    result = logs("-f")
    assert result.exit_code == 1
    assert 'Error: tiny-a1-0: pods "tiny-a1-0" not found' in result.stderr
