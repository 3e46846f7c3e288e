"""The LLM API: see the package."""

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection
from typing import Any

from tensorrt_llm.llmapi.llm_args import TorchLlmArgs

STEP = 0.002
"""Seconds a token."""


@dataclass
class SamplingParams:
    """The fields that are used, under their names: any other is refused, as by the published one."""

    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    n: int = 1
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    temperature: float | None = None
    logprobs: int | None = None
    detokenize: bool = True


@dataclass
class Logprob:
    """Of one token."""

    logprob: float
    rank: int | None = None


@dataclass
class CompletionOutput:
    """One answer."""

    index: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class RequestOutput:
    """What `generate_async` gives at once, and what iterating over it gives each time."""

    def __init__(self, llm: "LLM", prompt: list[int], sampling: SamplingParams) -> None:
        self.outputs = [CompletionOutput()]
        self.aborted = False
        self._llm = llm
        self._tokens = self._answer(prompt, sampling)

    def abort(self) -> None:
        self.aborted = True
        self._llm.active.discard(self)

    def __aiter__(self) -> AsyncIterator["RequestOutput"]:
        return self._tokens

    async def _answer(self, prompt: list[int], sampling: SamplingParams) -> AsyncIterator["RequestOutput"]:
        self._llm.active.add(self)
        (completion,) = self.outputs
        for count in range(sampling.max_tokens):
            await asyncio.sleep(STEP)
            await asyncio.to_thread(self._llm.iterate)
            token = (sum(prompt) + count) % 256 + 1
            completion.token_ids.append(token)
            if sampling.logprobs:  # 0 is none at all
                tops = {token + place: Logprob(-1.0 - place, place + 1) for place in range(sampling.logprobs)}
                completion.logprobs.append(tops)
            if token in (sampling.stop_token_ids or ()):
                completion.finish_reason, completion.stop_reason = "stop", token
                if not sampling.include_stop_str_in_output:
                    del completion.token_ids[-1]
            elif count + 1 == sampling.max_tokens:
                completion.finish_reason = "length"
            if completion.finish_reason:
                self._llm.active.discard(self)
            yield self
            if completion.finish_reason:
                return


def _connected(address: tuple[str, int], key: bytes) -> Connection:
    """Rank 0 may begin to listen later than the API's process comes."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return Client(address, authkey=key)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


class LLM:
    """The PyTorch backend's LLM."""

    def __init__(self, model: str, **kwargs: Any) -> None:
        self.args = TorchLlmArgs(model=model, **kwargs)
        self.active: set[RequestOutput] = set()
        self.ranks: list[dict[str, Any]] = []
        self._iterations = 0
        self._closed = False
        self._lock = threading.Lock()
        self._session: Connection | None = None
        if os.environ.get("TLLM_SPAWN_PROXY_PROCESS") == "1":
            host, port = os.environ["TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR"].removeprefix("tcp://").split(":")
            key = bytes.fromhex(os.environ["TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY"])
            self._session = _connected((host, int(port)), key)
            self.ranks = self._ask("load", model)
            print("RANKS", json.dumps(self.ranks), file=sys.stderr, flush=True)
            assert len(self.ranks) == kwargs["tensor_parallel_size"] * kwargs["pipeline_parallel_size"]

    def _ask(self, task: str, argument: Any) -> Any:
        assert self._session is not None
        with self._lock:
            self._session.send((task, argument))
            answer = self._session.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def iterate(self) -> None:
        """One pass, through all ranks where there are any."""
        if self._closed:
            raise RuntimeError("LLM is shutting down")
        self._iterations += 1
        if self._session is not None:
            self._ask("pass", None)

    def generate_async(
        self,
        inputs: list[int],
        sampling_params: SamplingParams | None = None,
        lora_request: None = None,
        prompt_adapter_request: None = None,
        streaming: bool = False,
    ) -> RequestOutput:
        if self._closed:
            raise RuntimeError("LLM is shutting down")
        assert streaming
        assert sampling_params is not None
        assert inputs
        if sampling_params.end_id is None and self.args.skip_tokenizer_init:
            raise ValueError("tokenizer is required to reset end_id if it is None")
        return RequestOutput(self, inputs, sampling_params)

    def get_stats_async(self, timeout: float | None = 2) -> AsyncIterator[dict[str, Any]]:
        return self._stats()

    async def _stats(self) -> AsyncIterator[dict[str, Any]]:
        for told in self._told():
            yield told
            await asyncio.sleep(0)

    def _told(self) -> Iterator[dict[str, Any]]:
        """Nothing for as long as nothing is computed."""
        if self._iterations:
            used = len(self.active)
            cache = {"maxNumBlocks": 100, "usedNumBlocks": used, "freeNumBlocks": 100 - used}
            yield {"iter": self._iterations, "numActiveRequests": used, "kvCacheStats": cache}

    def shutdown(self) -> None:
        if not self._closed and self._session is not None:
            with self._lock:
                self._session.send(None)
        self._closed = True
