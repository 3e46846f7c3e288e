"""What we ask of a NIM over its HTTP API, and what its silence means."""

import json
from http.client import HTTPConnection, HTTPException

from arctic_workers.inference.engine import Refused

_HOST = "127.0.0.1"
_TIMEOUT = 5.0
_FIRST_TIMEOUT = 120.0
"""Seconds that a first completion may take: engines may compile for it."""
_MISTAKES = (400, 401, 403, 404, 422)
"""Answers that no waiting changes."""


class Down(Exception):  # noqa: N818 - a state, not a fault
    """Nothing listens on its port: the container has ended, or has not begun to serve."""


class Silent(Exception):  # noqa: N818
    """It did not answer in time, or not whole."""


class Nim:
    """The NIM of this pod, which serves one model under one name."""

    def __init__(self, port: int, model: str) -> None:
        self._port = port
        self._model = model

    def healthy(self) -> bool:
        """Whether it says that it is ready. Raises Down or Silent."""
        return self._ask("GET", "/v1/health/ready")[0] == 200

    def metrics(self) -> str:
        """Return its metrics in Prometheus' text format. Raises Down or Silent."""
        status, text = self._ask("GET", "/v1/metrics")
        if status != 200:
            raise Silent(f"/v1/metrics is answered with {status}")
        return text

    def complete(self) -> None:
        """Have one token generated. Raises Refused for what no waiting changes, Down or Silent otherwise."""
        body = json.dumps({"model": self._model, "prompt": "1", "max_tokens": 1, "temperature": 0})
        status, text = self._ask("POST", "/v1/completions", body, _FIRST_TIMEOUT)
        if status in _MISTAKES:
            raise Refused(
                f"the NIM is ready and answers a completion of one token by model {self._model} with {status}: "
                f"{text.strip()[:300]}: name an image that serves /v1/completions, and leave NIM_* variables that name "
                "the model out of template.environment"
            )
        if status != 200:
            raise Silent(f"/v1/completions is answered with {status}: {text.strip()[:300]}")

    def _ask(self, method: str, path: str, body: str | None = None, timeout: float = _TIMEOUT) -> tuple[int, str]:
        connection = HTTPConnection(_HOST, self._port, timeout=timeout)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        except ConnectionRefusedError as error:
            raise Down(f"nothing listens on port {self._port}") from error
        except (OSError, HTTPException) as error:
            raise Silent(f"{path}: {error or type(error).__name__}") from error
        finally:
            connection.close()
