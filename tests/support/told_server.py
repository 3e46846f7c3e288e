"""An OpenAI API that answers an evaluation as it is told, with the questions that it knows the answers of."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROWS = [{"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"} for n in range(1, 7)]
TEXTS = [{"text": "abc", "category": "code"}, {"text": "select", "category": "sql"}]


class Server:
    """Answers sums rightly up to 3 + 3; refuses 5 + 5; is away after `most` requests."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.most = 1000
        self.holds = threading.Event()
        self.held_from = 1000
        """From which question on it answers only once `holds` is set."""
        self.held = threading.Event()
        """Set when there is one that is held."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.keys.add(self.headers["Authorization"])
                if len(server.asked) >= server.held_from:
                    server.held.set()
                    server.holds.wait()
                status, answer = server.answer(self.path, body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if len(self.asked) >= self.most:
            return 401, {"error": {"message": "no such key"}}
        self.asked.append(body)
        if path.endswith("/completions") and "prompt" in body:
            letters = list(body["prompt"])
            logprobs = {"tokens": [*letters, "!"], "token_logprobs": [None, *[-0.5] * len(letters)]}
            return 200, {"choices": [{"text": body["prompt"] + "!", "logprobs": logprobs}]}
        number = int(body["messages"][0]["content"].split()[2])
        if number == 5:
            return 400, {"error": {"message": "the prompt is too long"}}
        return 200, {"choices": [{"message": {"content": f"#### {2 * number if number <= 3 else 0}"}}]}

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines; return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
