"""A model behind an OpenAI-compatible API, as evaluations ask it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from arctic_workers.control.ports import is_loopback
from arctic_workers.evaluation.suites.form import Answer, Question

_MOST_STOPS = 4
"""As many as OpenAI takes; what is left is cut off here."""
_TRIES = 5
_WAIT_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 60.0


class EndpointError(Exception):
    """The endpoint does not answer as an OpenAI API does; the message says what it said, and where."""


class RefusedError(Exception):
    """One request is refused, such as one that is too long for the model, or can't be made: others may go."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    samples: int = 1
    temperature: float = 0.0
    seed: int = 0


class Endpoint:
    """Asks one model. Safe to use from several threads.

    Args:
        url: the API's address, up to and with `/v1`.
        model: the model's name there.
        is_chat: whether questions go to the model's chat template, or are continued as text.
        key: the API key, if it takes one.
    """

    def __init__(self, url: str, model: str, *, is_chat: bool, key: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._model = model
        self._is_chat = is_chat
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(600.0, connect=10.0)
        here = is_loopback(httpx.URL(self._url).host)  # where no proxy gets to
        try:
            self._client = httpx.Client(timeout=timeout, headers=headers, trust_env=not here)
        except ImportError as error:  # a proxy that takes a library of its own
            raise EndpointError(f"{url} can't be asked by the proxy that the environment names: {error}") from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, question: Question, sample: int, sampling: Sampling) -> Answer:
        """Return one answer: the same for the same sample number, where the endpoint honours seeds."""
        asked: dict[str, Any] = {
            "model": self._model,
            "max_tokens": question.max_tokens,
            "temperature": sampling.temperature,
            "seed": sampling.seed + sample,
        }
        if self._is_chat:
            messages = [{"role": "user", "content": question.chat}]
            choice = self._choice("chat/completions", {**asked, "messages": messages})
            text = choice.get("message", {}).get("content")
        else:
            stops = {"stop": list(question.stops[:_MOST_STOPS])} if question.stops else {}
            choice = self._choice("completions", {**asked, **stops, "prompt": question.text})
            text = choice.get("text")
        if not isinstance(text, str | None):
            raise EndpointError(f"{self._url} answered with no text: {str(text)[:300]}")
        return Answer(text or "", self._is_chat)

    def read(self, text: str) -> tuple[float, int]:
        """Return the negative log-likelihood of a text, in nats, and of how many tokens it is: all but the first."""
        asked = {"model": self._model, "prompt": text, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        choice = self._choice("completions", asked)
        try:
            # The last token is the one that had to be asked for.
            logprobs = [float(each) for each in choice["logprobs"]["token_logprobs"][1:-1]]
        except (KeyError, TypeError, ValueError) as error:
            raise EndpointError(
                f"{self._url}/completions does not tell how likely a prompt is (echo with logprobs), which perplexity "
                "takes: leave that suite out, or evaluate the model's folder"
            ) from error
        return -sum(logprobs), len(logprobs)

    def _choice(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._answer(path, body)
        try:
            choice = answer.json()["choices"][0]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise EndpointError(f"{self._url}/{path} answered with no choice: {answer.text[:300]}") from error
        if not isinstance(choice, dict):
            raise EndpointError(f"{self._url}/{path} answered with no choice: {answer.text[:300]}")
        return choice

    def _answer(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """Return an answer; asks again where the endpoint is busy or away for a moment."""
        fault, wait = "", 0.0
        for number in range(_TRIES):
            time.sleep(wait)
            wait = _WAIT_SECONDS * 2**number
            try:
                answer = self._client.post(f"{self._url}/{path}", json=body)
            except httpx.TransportError as error:
                fault = f"can't be reached: {error!r}"
                continue
            except UnicodeEncodeError as error:
                raise RefusedError(f"what is asked is no UTF-8: {error}") from error
            if answer.status_code == httpx.codes.OK:
                return answer
            fault = f"answers {answer.status_code}: {answer.text[:500]}"
            if answer.status_code == httpx.codes.BAD_REQUEST:
                raise RefusedError(fault)
            if answer.status_code not in (429, 500, 502, 503, 504):
                break
            if after := answer.headers.get("Retry-After"):
                wait = min(float(after), _LONGEST_WAIT_SECONDS) if after.replace(".", "", 1).isdigit() else wait
        raise EndpointError(f"{self._url}/{path} {fault}")
