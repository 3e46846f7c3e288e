"""The native engine on rank 0: a thread that schedules, runs steps and hands out tokens.

Everything that the thread touches belongs to it; other threads put messages into its inbox.
"""

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from arctic_workers.inference.engine import EngineError, FinishReason, Output, Request, SamplingField, Stats
from arctic_workers.inference.engines.native.blocks import BLOCK_SIZE, BlockManager
from arctic_workers.inference.engines.native.budget import TokenBudget
from arctic_workers.inference.engines.native.group import Rank
from arctic_workers.inference.engines.native.pipeline import Pipeline
from arctic_workers.inference.engines.native.plan import Plan
from arctic_workers.inference.engines.native.scheduler import Chunk, Scheduler
from arctic_workers.inference.engines.native.sequence import Sequence
from arctic_workers.inference.engines.native.step import Draw, Drawn, Part
from arctic_workers.inference.engines.native.suffix import Drafter
from arctic_workers.inference.open_requests import OpenRequests
from arctic_workers.inference.rendezvous import Heartbeats

log = logging.getLogger(__name__)

PING = 2.0
"""Seconds without work after which rank 0 sends a pass of one token through the ranks, to see that all are there."""
MOST_UNREAD = 1024
"""Tokens of an endless answer that may wait for its reader: it gets no more until some of them are taken."""
READ_AT_ONCE = 256
"""Tokens after which a reader says that it has taken them."""


@dataclass
class _Stream:
    """Where the tokens of one request go, on its reader's event loop; `None` means that the engine failed.

    `asyncio.Queue`, which may have many readers, costs a token half as much again.
    """

    sequence: Sequence
    loop: asyncio.AbstractEventLoop
    outputs: deque[Output | None] = field(default_factory=deque)
    """That its reader has not taken."""
    reader: asyncio.Future[None] | None = None
    """Its reader, while that waits."""
    unread: int = 0
    """Tokens that its reader has not said to have taken."""

    def put(self, output: Output | None) -> None:
        """Give its reader an output."""
        self.outputs.append(output)
        if self.reader is not None and not self.reader.done():
            self.reader.set_result(None)

    async def get(self) -> Output | None:
        """Return the next output, once it is there."""
        if not self.outputs:
            self.reader = self.loop.create_future()
            await self.reader
        return self.outputs.popleft()

    def count_unread(self, tokens: int) -> None:
        """Count so many more as unread; what keeps its blocks to its end then waits for its reader.

        Any other answer is better finished, which frees its blocks: its tokens, unread, take far less memory.
        """
        self.unread += tokens
        self.sequence.held = self.sequence.outgrows is not None and self.unread >= MOST_UNREAD


@dataclass(frozen=True)
class _Step:
    """On its way through the ranks since `begun`, a moment of `time.monotonic`."""

    chunks: list[Chunk]
    begun: float


@dataclass(frozen=True)
class _Add:
    stream: _Stream


@dataclass(frozen=True)
class _Cancel:
    sequence: Sequence


@dataclass(frozen=True)
class _Read:
    """`READ_AT_ONCE` tokens are taken."""

    stream: _Stream


class _Stop:
    pass


class NativeEngine:
    """An `Engine` over a pipeline.

    `bring_up` loads rank 0, calling back with the share that is there, and returns when all ranks have loaded.
    """

    def __init__(
        self,
        plan: Plan,
        bring_up: Callable[[Callable[[float], None]], Rank],
        *,
        beat: Callable[[], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        """`beat` is called whenever the thread goes round, `on_failure` once if it breaks after it was ready."""
        self._plan = plan
        self._bring_up = bring_up
        self._beat = beat
        self._on_failure = on_failure
        self._max_length = plan.max_length
        self._inbox: queue.SimpleQueue[_Add | _Cancel | _Read | _Stop] = queue.SimpleQueue()
        self._streams: dict[Sequence, _Stream] = {}
        self._loaded = 0.0
        self._under_way: deque[_Step] = deque()
        """Steps on their way through the ranks, the oldest first."""
        self._idle = True
        """Whether there is nothing to do until a message comes."""
        self._outputs: list[tuple[_Stream, Output]] = []
        """That nobody has been told of."""
        self._lost_blocks = 0
        self._open = OpenRequests()
        self._asked = self._seen = 0
        """Requests put into the inbox, and those taken out of it by the thread."""
        self._ready = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def ready(self) -> bool:
        """See `Engine`."""
        return self._ready

    @property
    def max_length(self) -> int:
        """See `Engine`; less than was asked for where the cache is smaller."""
        return self._max_length

    @property
    def cannot(self) -> frozenset[SamplingField]:
        """See `Engine`: it honours all."""
        return frozenset()

    def problem(self, request: Request) -> str | None:  # noqa: ARG002
        """See `Engine`: there is nothing."""
        return None

    def stats(self) -> Stats:
        """See `Engine`.

        Requests that the thread has not seen yet count as waiting; those whose tokens are all there and not yet taken
        wait for nothing, and a drain for them.
        """
        if not self._ready:
            return Stats(waiting=self._open.count, loaded=self._loaded, lost_blocks=self._lost_blocks)
        # What the thread works on, read in one go each.
        waiting = min(self._scheduler.waiting + self._asked - self._seen, self._open.count)
        return Stats(self._open.count - waiting, waiting, self._blocks.utilization, self._loaded, self._lost_blocks)

    async def start(self) -> None:
        """See `Engine`."""
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._thread.start()
        await self._started

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """See `Engine`."""
        if not self._ready:
            raise EngineError("the engine is not ready")
        stream = _Stream(_sequence(request, self._plan), self._loop)
        with self._open.one():
            self._asked += 1
            self._inbox.put(_Add(stream))
            finished, read = False, 0
            try:
                while not finished:
                    output = await stream.get()
                    if output is None:
                        raise EngineError("the engine failed; see its log")
                    finished = output.finish_reason is not None
                    yield output
                    read += 1
                    if read % READ_AT_ONCE == 0:
                        self._inbox.put(_Read(stream))
            finally:
                if not finished:
                    self._inbox.put(_Cancel(stream.sequence))

    async def drain(self) -> None:
        """See `Engine`."""
        await self._open.none()

    async def stop(self) -> None:
        """See `Engine`."""
        self._inbox.put(_Stop())
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        try:
            heartbeats = self._load()
        except Exception as error:
            self._loop.call_soon_threadsafe(self._started.set_exception, error)
            return
        try:
            self._ready = True
            self._loop.call_soon_threadsafe(self._started.set_result, None)
            while self._turn():
                pass
            self._ready = False
            if heartbeats is not None:
                heartbeats.stop()
            self._pipeline.stop()
        except Exception as error:
            log.exception("The engine failed")
            self._ready = False
            self._loop.call_soon_threadsafe(_fail, list(self._streams.values()))
            self._on_failure(error)

    def _load(self) -> Heartbeats | None:
        """Bring the group up, see a real pass go through all ranks, and tell them."""
        rank = self._bring_up(self._load_share)
        plan = self._plan
        self._pipeline = Pipeline(rank.runner, rank.link, plan.pipeline_format)
        self._blocks = BlockManager(rank.blocks, BLOCK_SIZE)
        self._budget = TokenBudget(plan.token_budget, plan.target_between_tokens)
        self._scheduler = Scheduler(
            self._blocks,
            self._budget,
            max_sequences=plan.max_sequences,
            ranks=plan.ranks,
            window=plan.window,
            drafter=Drafter(self._budget.times) if plan.suffix_decoding else None,
        )
        whole = rank.blocks >= plan.blocks_of_a_sequence
        self._max_length = plan.max_length if whole else self._blocks.capacity
        log.info("A request has at most %d tokens, prompt and answer together", self._max_length)
        self._ping()
        self._pipeline.announce_ready()
        return rank.heartbeats

    def _load_share(self, share: float) -> None:
        self._loaded = share

    def _ping(self) -> None:
        """A real pass of one token, in the cache's last block, which is nobody's."""
        self._pipeline.submit([Part(0, (0,), (self._blocks.count,), Draw(0, 0.0, 1.0, 0, None))])
        self._pipeline.collect()

    def _check_blocks(self) -> None:
        """While nobody is here every block has to be free: take back what is not, and say so."""
        if faults := self._blocks.faults():
            lost = max(self._blocks.count - self._blocks.free, 1)
            log.error("The cache's blocks were in disorder, all are taken back: %s", "; ".join(faults))
            self._blocks.reset()
            self._lost_blocks += lost

    def _turn(self) -> bool:
        """Take messages, begin steps until every rank has one, finish the oldest; False when told to stop."""
        self._beat()
        if not self._take_messages():
            while self._under_way:  # whose tokens nobody waits for any more
                self._under_way.popleft()
                self._pipeline.collect()
            return False
        while free := self._plan.ranks - len(self._under_way):
            chunks = self._scheduler.schedule(free)
            if not chunks:
                break
            self._under_way.append(_Step(chunks, time.monotonic()))
            parts = [_part(chunk) for chunk in chunks]
            self._hand_out()
            self._pipeline.submit(parts)
        self._hand_out()
        self._idle = not self._under_way
        if self._under_way:
            step = self._under_way.popleft()
            drawn = self._pipeline.collect()
            self._budget.times.observe(sum(chunk.length for chunk in step.chunks), time.monotonic() - step.begun)
            self._deliver(step, drawn)
        return True

    def _hand_out(self) -> None:
        """Tell the clients of their tokens, when planning is done: telling wants the interpreter too."""
        if self._outputs:
            outputs, self._outputs = self._outputs, []
            self._loop.call_soon_threadsafe(_put, outputs)

    def _take_messages(self) -> bool:
        while True:
            try:
                message = self._inbox.get(timeout=PING) if self._idle else self._inbox.get_nowait()
            except queue.Empty:
                if self._idle:
                    if not self._streams:
                        self._check_blocks()
                    self._ping()
                return True
            self._idle = False
            if isinstance(message, _Stop):
                return False
            if isinstance(message, _Add):
                self._streams[message.stream.sequence] = message.stream
                self._scheduler.add(message.stream.sequence)
                self._seen += 1
            elif isinstance(message, _Read):
                message.stream.count_unread(-READ_AT_ONCE)
            elif self._streams.pop(message.sequence, None):
                self._scheduler.cancel(message.sequence)

    def _deliver(self, step: _Step, drawn: list[Drawn]) -> None:
        rest, made = iter(drawn), time.monotonic()
        for chunk in step.chunks:
            sequence = chunk.sequence
            if sequence.begun is None:
                sequence.begun = step.begun
            _keep_told(chunk, rest)
            sampled = list(islice(rest, chunk.draws))
            if not sampled or sequence.ended:  # cancelled while its tokens were on their way
                continue
            first = not sequence.generated
            prompt, begun = (_prompt(sequence), sequence.begun) if first else ((), None)
            taken, reason = self._scheduler.update(chunk, [one.token for one in sampled])
            outputs = _outputs(sampled[:taken], prompt, reason, begun, made)
            stream = self._streams[sequence]
            stream.count_unread(taken)
            self._outputs += [(stream, one) for one in outputs]
            if reason is not None:
                del self._streams[chunk.sequence]


def _fail(streams: list[_Stream]) -> None:
    for stream in streams:
        stream.put(None)


def _put(outputs: list[tuple[_Stream, Output]]) -> None:
    for stream, output in outputs:
        stream.put(output)


def _part(chunk: Chunk) -> Part:
    sequence = chunk.sequence
    return Part(
        chunk.start,
        chunk.tokens,
        tuple(sequence.blocks),
        sequence.draw if chunk.samples else None,
        draws=max(chunk.draws, 1),
        known=sequence.known(chunk.start, chunk.length),
        dropped=sequence.dropped,
        adapter=sequence.adapter,
    )


def _keep_told(chunk: Chunk, drawn: Iterator[Drawn]) -> None:
    """Take what a step told of the prompt's tokens; a prompt that is computed anew is told of again."""
    known = chunk.sequence.known(chunk.start, chunk.length)
    for place, one in enumerate(islice(drawn, len(known.tokens) if known else 0)):
        chunk.sequence.told[chunk.start + 1 + place] = one


def _prompt(sequence: Sequence) -> tuple[Output, ...]:
    """Return the prompt's tokens as they were told."""
    if sequence.request.sampling.prompt_logprobs is None:
        return ()
    told = [sequence.told[place] for place in range(1, len(sequence.request.prompt))]
    sequence.told.clear()
    return (Output(sequence.request.prompt[0]), *(Output(one.token, one.logprob, one.top) for one in told))


def _outputs(
    drawn: list[Drawn], prompt: tuple[Output, ...], reason: FinishReason | None, begun: float | None, made: float
) -> list[Output]:
    """Return a sequence's next tokens: the prompt's go with the first, and why it ends now with the last."""
    last = len(drawn) - 1
    return [
        Output(
            one.token,
            one.logprob,
            one.top,
            finish_reason=reason if place == last else None,
            prompt=prompt if place == 0 else (),
            begun=begun if place == 0 else None,
            made=made,
        )
        for place, one in enumerate(drawn)
    ]


def _sequence(request: Request, plan: Plan) -> Sequence:
    """Return a request's sequence, and with whom it shares: nothing that was computed crosses salts, or adapters.

    Keys meet only where all prompts are shared: without, proposals from the answers of others could still be told from
    an answer's time. Who is told of its prompt computes all of it.
    """
    salt = b"" if plan.prefix_caching is True else request.caller
    adapter = -1
    if request.adapter is not None:
        adapter = list(plan.adapters).index(request.adapter)
        salt = b"%d/%b" % (adapter, salt)  # longer than any without an adapter
    shares = plan.prefix_caching is not False and request.sampling.prompt_logprobs is None
    return Sequence(request, salt=salt, shares=shares, adapter=adapter)
