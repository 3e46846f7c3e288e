"""vLLM on the leader: its scheduler and its ranks are processes of their own, asked through `AsyncLLM` in this one."""

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import SchedulerStats

from arctic_api.world import InferenceGroup
from arctic_workers.control.loop import in_thread
from arctic_workers.inference.engine import EngineError, Output, Request, Sampling, SamplingField, Stats
from arctic_workers.inference.engines.vllm.launch import configure
from arctic_workers.inference.engines.vllm.peers import Peers, Phase, meet_peers
from arctic_workers.inference.engines.vllm.translation import outputs, problem, prompt_outputs, sampling_params
from arctic_workers.inference.open_requests import OpenRequests

log = logging.getLogger(__name__)

PING = 2.0
"""Seconds without work after which a pass of one token is made, to see that all ranks are there."""
_WATCH = 0.5
_ENDED = "vLLM's engine ended: a rank of it failed or is gone; the log says why"
_PASS = Request((0,), Sampling(1, temperature=0.0))
_FIRST_PASSES = (_PASS, Request((0,), Sampling(1, top_p=0.9, top_k=2, logprobs=1)))
"""vLLM compiles how it draws, and how it finds logprobs, when that is asked for first: seconds that no client waits."""


class VLLMEngine:
    """An `Engine` over the ranks of a group, of which this pod has the first."""

    def __init__(
        self,
        group: InferenceGroup,
        arguments: dict[str, Any],
        *,
        on_loss: Callable[[str], None],
        on_stop: Callable[[], None],
        beat: Callable[[], None],
    ) -> None:
        """`on_loss` gets a sentence, once, when the group broke; `on_stop` is called when another pod asks for the end.

        `beat` is called whenever vLLM has answered.
        """
        self._group = group
        self._arguments = arguments
        self._on_loss = on_loss
        self._on_stop = on_stop
        self._beat = beat
        self._peers: Peers | None = None
        self._llm: AsyncLLM | None = None
        self._scheduler = SchedulerStats()
        self._numbers = itertools.count()
        self._open = OpenRequests()
        self._ready = False

    @property
    def ready(self) -> bool:
        """See `Engine`."""
        return self._ready

    @property
    def max_length(self) -> int:
        """See `Engine`."""
        length: int = self._arguments["max_model_len"]
        return length

    @property
    def cannot(self) -> frozenset[SamplingField]:
        """See `Engine`: it serves requests as they come."""
        return frozenset({"priority"})

    def problem(self, request: Request) -> str | None:
        """See `Engine`."""
        return problem(request.sampling)

    def stats(self) -> Stats:
        """See `Engine`. What vLLM said last may be of requests that were cancelled since."""
        if not self._open.count:
            return Stats(loaded=float(self._llm is not None))
        waiting = max(self._open.unmade - self._scheduler.num_running_reqs, 0)
        return Stats(self._open.count - waiting, waiting, self._scheduler.kv_cache_usage, loaded=1.0)

    async def start(self) -> None:
        """See `Engine`."""
        self._llm = await in_thread("vllm", self._bring_up)
        for request in _FIRST_PASSES:
            async for _ in self._tokens(request):
                pass
        if self._peers is not None:
            self._peers.announce(Phase.READY)
        self._ready = True
        log.info("A request has at most %d tokens, prompt and answer together", self.max_length)
        self._watching = asyncio.create_task(self._watch())

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """See `Engine`."""
        if not self._ready:
            raise EngineError("the engine is not ready")
        async with aclosing(self._open.answer(self._tokens(request))) as tokens:
            async for output in tokens:
                yield output

    async def drain(self) -> None:
        """See `Engine`."""
        await self._open.none()

    async def stop(self) -> None:
        """See `Engine`."""
        self._ready = False
        self._watching.cancel()
        assert self._llm is not None, "it has started"
        if self._peers is not None:
            self._peers.announce(Phase.ENDING)
        if self._llm.output_handler is not None:  # it would take the end for a failure
            self._llm.output_handler.cancel()
        await in_thread("vllm-end", self._llm.shutdown)
        if self._peers is not None:
            await in_thread("vllm-peers", self._peers.wait_for_goodbyes)

    def _bring_up(self) -> AsyncLLM:
        """Meet the other pods and load; blocks for as long as that takes."""
        config = configure(self._arguments, headless=False)
        if len(self._group.hosts) > 1:
            self._peers = meet_peers(self._group, 0, on_loss=self._on_loss, on_stop=self._on_stop)
        try:
            return AsyncLLM.from_vllm_config(config, stat_loggers=[self._observer], disable_log_stats=True)
        except Exception as error:
            raise EngineError(f"vLLM did not start; the log says why ({error})") from error

    def _observer(self, *_: object) -> "_Observer":
        return _Observer(self._observe)

    def _observe(self, stats: SchedulerStats) -> None:
        self._scheduler = stats
        self._beat()

    async def _tokens(self, request: Request) -> AsyncGenerator[Output, None]:
        assert self._llm is not None, "it has started"
        prompt = {"prompt_token_ids": list(request.prompt)}
        answer = self._llm.generate(prompt, sampling_params(request.sampling), str(next(self._numbers)))
        try:
            async for item in answer:
                told = prompt_outputs(request.prompt, item.prompt_logprobs, request.sampling)
                for output in outputs(item.outputs[0], request.sampling):
                    yield replace(output, prompt=told) if told else output
                    told = ()
        except EngineDeadError:
            self._lose()
            raise EngineError(_ENDED) from None
        except EngineGenerateError as error:
            raise EngineError(f"vLLM failed on a request: {error.__cause__ or error}") from error
        finally:
            await answer.aclose()

    async def _watch(self) -> None:
        """See that vLLM lives, and all ranks with it while there is nothing to do."""
        assert self._llm is not None, "it has started"
        quiet = 0.0
        while not self._llm.errored:
            await asyncio.sleep(_WATCH)
            quiet = 0.0 if self._open.unmade else quiet + _WATCH
            if quiet >= PING:
                quiet = 0.0
                with suppress(EngineError):  # the group is lost then
                    async for _ in self._tokens(_PASS):
                        pass
        self._lose()

    def _lose(self) -> None:
        """The engine is gone, unless it was told to go."""
        if self._ready:
            self._ready = False
            self._on_loss(_ENDED)


class _Observer(StatLoggerBase):  # type: ignore[misc]  # vLLM is not typed where this is checked
    """Takes what vLLM says of its scheduler after each step; vLLM's own metrics are not served."""

    def __init__(self, observe: Callable[[SchedulerStats], None]) -> None:
        self._observe = observe

    def record(self, scheduler_stats: SchedulerStats | None, *_: object, **__: object) -> None:
        """Take the scheduler's state."""
        if scheduler_stats is not None:
            self._observe(scheduler_stats)

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
