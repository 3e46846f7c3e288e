"""TensorRT-LLM behind the engine protocol, by its LLM API. Written against its published source; not run on a GPU yet.

The LLM API is a proxy: its ranks are elsewhere, and it hands them requests and gets tokens back on threads of its own.
What is called here: `LLM(**arguments)`, `generate_async(inputs, sampling_params, streaming=True)`, whose answer is
iterated over and has `abort()`; `get_stats_async(timeout)`; `shutdown()`.

Source: `tensorrt_llm/llmapi/llm.py`, `executor/result.py` and `sampling_params.py`, in stored versions around release
1.2.1. Its sampler draws from one generator for all requests: per-request seeds came later (pull request 17172). It
takes penalties and applies none (issue 9442): they came later too (pull request 16485).
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any, get_args

from arctic_workers.control.loop import in_thread
from arctic_workers.inference.engine import EngineError, FinishReason, Output, Request, Sampling, SamplingField, Stats
from arctic_workers.inference.open_requests import OpenRequests

log = logging.getLogger(__name__)

PING = 5.0
"""Seconds without work after which a pass of one token goes through the ranks, to see that all are there."""
SILENCE = 120.0
"""Seconds within which such a pass has to come back."""
SHUTDOWN = 30.0
"""Seconds that the ranks get to end."""
_STATS_PAUSE = 1.0
_PASS = Request((0,), Sampling(max_tokens=1, temperature=0.0))
CANNOT: frozenset[SamplingField] = frozenset(get_args(SamplingField)) - {"logprobs", "top_k"}
_NO_TOKEN = -1
"""An end token that no model draws: the tokens that end a request are its own matter."""


class TensorRTEngine:
    """An `Engine` over the LLM API. `arguments` are what `LLM` is made with."""

    def __init__(
        self, arguments: dict[str, Any], *, beat: Callable[[], None], on_failure: Callable[[str], None]
    ) -> None:
        """`beat` is called at each sign of life of the ranks, `on_failure` once if they fail after they were ready."""
        self._arguments = arguments
        self._beat = beat
        self._on_failure = on_failure
        self._ready = False
        self._open = OpenRequests()
        self._doubt = asyncio.Event()
        self._told: dict[str, Any] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> bool:
        """See `Engine`."""
        return self._ready

    @property
    def max_length(self) -> int:
        """See `Engine`."""
        return int(self._arguments["max_seq_len"])

    @property
    def cannot(self) -> frozenset[SamplingField]:
        """See `Engine`: what this release leaves out, or what nobody has seen it do."""
        return CANNOT

    def problem(self, request: Request) -> str | None:  # noqa: ARG002
        """See `Engine`: there is nothing."""
        return None

    def stats(self) -> Stats:
        """See `Engine`: from the last iteration that the ranks told of; none is told of while they are idle."""
        waiting = max(self._open.unmade - int(self._told.get("numActiveRequests", 0)), 0)
        return Stats(self._open.count - waiting, waiting, _utilization(self._told), loaded=float(self._ready))

    async def start(self) -> None:
        """See `Engine`. TensorRT-LLM does not tell how far it is."""
        self._llm = await in_thread("load", lambda: _load(self._arguments))
        await self._pass()
        self._ready = True
        self._tasks = [asyncio.create_task(self._look_after()), asyncio.create_task(self._follow_stats())]

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """See `Engine`."""
        if not self._ready:
            raise EngineError("the engine is not ready")
        async with aclosing(self._open.answer(self._generate(request))) as outputs:
            async for output in outputs:
                yield output

    async def drain(self) -> None:
        """See `Engine`."""
        await self._open.none()

    async def stop(self) -> None:
        """See `Engine`. What does not end in time is left to whoever started the ranks."""
        self._ready = False
        for task in self._tasks:
            task.cancel()
        try:
            await asyncio.wait_for(in_thread("shutdown", self._llm.shutdown), SHUTDOWN)
        except TimeoutError:
            log.warning("The ranks did not end within %.0f s", SHUTDOWN)

    async def _generate(self, request: Request) -> AsyncGenerator[Output, None]:
        from tensorrt_llm import SamplingParams

        count, finished, answer = 0, False, None
        try:
            answer = self._llm.generate_async(
                list(request.prompt),
                sampling_params=SamplingParams(**sampling_arguments(request.sampling)),
                streaming=True,
            )
            async for part in answer:
                self._beat()
                for output in new_outputs(part.outputs[0], count, request.sampling):
                    count += 1
                    finished = output.finish_reason is not None
                    yield output
        except Exception as error:
            self._doubt.set()
            raise EngineError(f"TensorRT-LLM failed: {error}") from error
        finally:
            if answer is not None and not finished:
                answer.abort()
        if not finished:
            raise EngineError("TensorRT-LLM ended an answer without saying why")

    async def _pass(self) -> None:
        """Send a real pass of one token through all ranks. Raises EngineError."""
        try:
            async with asyncio.timeout(SILENCE):
                async for _ in self._generate(_PASS):
                    pass
        except TimeoutError:
            raise EngineError(f"a pass of one token did not come back within {SILENCE:.0f} s") from None

    async def _look_after(self) -> None:
        """See that the ranks are there: while nobody else would notice, and when a request has failed."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._doubt.wait(), PING)
            if self._open.unmade and not self._doubt.is_set():
                continue  # a request that hangs shows in the heart that it does not beat
            self._doubt.clear()
            try:
                await self._pass()
            except EngineError as error:
                self._ready = False
                self._on_failure(str(error))
                return

    async def _follow_stats(self) -> None:
        while True:
            # Statistics are for people: nothing ends because there are none.
            with suppress(Exception):
                async for told in self._llm.get_stats_async(timeout=2):
                    self._told = json.loads(told) if isinstance(told, str) else told
            await asyncio.sleep(_STATS_PAUSE)


def _load(arguments: dict[str, Any]) -> Any:
    """Make the LLM, which returns when all ranks have loaded. Raises Refused, EngineError."""
    from arctic_workers.inference.engines.tensorrt_llm import register
    from arctic_workers.inference.engines.tensorrt_llm.arguments import check_arguments

    register()
    check_arguments(arguments)
    from tensorrt_llm import LLM

    try:
        return LLM(**arguments)
    except Exception as error:
        raise EngineError(f"TensorRT-LLM could not load the model: {error}") from error


def sampling_arguments(sampling: Sampling) -> dict[str, Any]:
    """Return what `SamplingParams` is made with."""
    arguments: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "end_id": _NO_TOKEN,
        "stop_token_ids": sorted(sampling.stop_tokens) or None,
        # It would cut the stop token off, which the protocol wants to see.
        "include_stop_str_in_output": True,
        "detokenize": False,
        # 0 is none at all: the chosen token's comes with that of the likeliest.
        "logprobs": None if sampling.logprobs is None else max(sampling.logprobs, 1),
    }
    if sampling.temperature < GREEDY:
        return arguments | {"top_k": 1}
    return arguments | {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or None,
    }


GREEDY = 1e-5
"""Temperatures below are greedy: the logits divided by less leave nothing but the likeliest."""


def new_outputs(completion: Any, count: int, sampling: Sampling) -> Sequence[Output]:
    """Return what is new in an answer of which `count` tokens are known. Raises EngineError."""
    tokens = list(completion.token_ids[count:])
    reason = _finish_reason(completion.finish_reason)
    stopped_by = completion.stop_reason
    if reason == "stop" and isinstance(stopped_by, int) and (not tokens or tokens[-1] != stopped_by):
        tokens.append(stopped_by)  # cut off after all
    outputs = [_output(token, completion, count + index, sampling) for index, token in enumerate(tokens)]
    if reason is not None:
        if not outputs:
            raise EngineError(f"TensorRT-LLM ended an answer without a token ({reason})")
        last = outputs[-1]
        outputs[-1] = Output(last.token, last.logprob, last.top, reason)
    return outputs


def _finish_reason(reason: str | None) -> FinishReason | None:
    if reason in (None, "stop", "length"):
        return reason  # type: ignore[return-value]
    raise EngineError(f"TensorRT-LLM ended the answer: {reason}")


def _output(token: int, completion: Any, index: int, sampling: Sampling) -> Output:
    if sampling.logprobs is None:
        return Output(token)
    try:
        table = completion.logprobs[index]
        chosen = table[token].logprob
    except (IndexError, KeyError):
        raise EngineError(f"TensorRT-LLM told no probability of token {token}, which it drew") from None
    likeliest = sorted(((number, entry.logprob) for number, entry in table.items()), key=lambda pair: -pair[1])
    return Output(token, chosen, tuple(likeliest[: sampling.logprobs]))


def _utilization(told: dict[str, Any]) -> float:
    cache = told.get("kvCacheStats") or {}
    most = cache.get("maxNumBlocks", 0)
    return cache.get("usedNumBlocks", 0) / most if most else 0.0
