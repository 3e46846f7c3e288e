"""The leader: pipeline rank 0, which serves the HTTP API over an engine and ends the group in order."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import uvicorn
import uvloop

from arctic_api import tracing
from arctic_api.common import parse_duration
from arctic_api.tracing import Place, Span
from arctic_api.world import InferenceGroup
from arctic_rpc import control_pb2
from arctic_rpc.control_pb2 import DONE, DRAINING, RUNNING, STARTING, InferenceState, Phase
from arctic_workers.chat.template import TextError
from arctic_workers.control.commands import Commands, NotNow
from arctic_workers.control.loop import in_thread
from arctic_workers.control.traces import begin_traces, made_by_operator
from arctic_workers.inference.engine import Engine, Refused, Stats
from arctic_workers.inference.http.connection import Connection
from arctic_workers.inference.http.keys import KeyFiles
from arctic_workers.inference.http.server import Api, Gate
from arctic_workers.inference.http.text import Text
from arctic_workers.inference.metrics import LogSums, Metrics
from arctic_workers.inference.pod import LINGER, Pod

log = logging.getLogger(__name__)

QUEUE_FACTOR = 4
"""So many times `maxSequences` requests may wait."""
LAST_ANSWERS = 5.0
"""Seconds for the last bytes of answers to leave."""
_POLL = 0.1


def lead(pod: Pod, engine: Engine, folder: Path, vocabulary: int) -> None:
    """Serve an engine until told to stop, with the tokenizer in `folder`. Raises Refused, EngineError, OSError.

    `vocabulary` is the number of tokens that the model knows.
    """
    try:
        text = Text(folder)
    except TextError as error:
        raise Refused(str(error)) from None
    if text.vocabulary > vocabulary:
        raise Refused(
            f"{folder}: the tokenizer's tokens go up to {text.vocabulary - 1} and the model's to {vocabulary - 1}; "
            "they are not of one model"
        )
    begin_traces("arctic-inference", pod.group, os.environ)
    try:
        leader = Leader(pod, engine, text, vocabulary)
        with pod.controlled(leader):
            uvloop.run(leader.run())
    finally:
        tracing.end()


class Leader(Commands):
    """Serves from `run` until it is told to stop. `vocabulary` is the number of tokens that the model knows."""

    def __init__(self, pod: Pod, engine: Engine, text: Text, vocabulary: int) -> None:
        self._pod = pod
        self._engine = engine
        self._gate = Gate()
        spec = pod.group.spec
        self._metrics = Metrics(pod.registry, self._stats)
        self._loading = Place.drawn(pod.group.uid)  # a group of this name may load more than once
        api = Api(
            engine,
            text,
            self._metrics,
            self._gate,
            model=pod.group.served_name,
            adapters=[adapter.name for adapter in spec.model.adapters or ()],
            vocabulary=vocabulary,
            most_running=spec.batching.max_sequences,
            most_waiting=QUEUE_FACTOR * spec.batching.max_sequences,
            cors=spec.service.cors or (),
            keys=KeyFiles(Path(pod.group.keys_folder)) if pod.group.keys_folder else None,
            linked=self._loading if tracing.is_on() else None,
        )
        self._server = _Server(
            uvicorn.Config(
                api.app,
                http=Connection,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=int(LAST_ANSWERS),
            )
        )
        self._drain_timeout = parse_duration(spec.rollout.drain_timeout)
        # Told to stop, it is for the gateway to leave out. A drain over gRPC changes nothing: the operator has taken
        # the leader out of the routing before, and deletes at once what drains and is not ready.
        pod.ready = lambda: engine.ready and not pod.stop.requested.is_set()

    def drain(self, timeout: float) -> None:  # noqa: ARG002
        """See `Commands`."""
        if not self._engine.ready:
            raise NotNow("The group is still loading, so there is nothing to drain.")
        self._loop.call_soon_threadsafe(self._begin_draining)

    def stop(self, timeout: float) -> None:  # noqa: ARG002
        """See `Commands`."""
        self._pod.stop.request()

    async def run(self) -> None:
        """Load, serve, and return when the group has ended in order. Raises Refused, EngineError, OSError."""
        self._loop, begun = asyncio.get_running_loop(), time.monotonic()
        stopping = asyncio.create_task(in_thread("stopping", self._pod.stop.requested.wait))
        starting = asyncio.create_task(self._engine.start())
        telling = asyncio.create_task(self._tell())
        await asyncio.wait((stopping, starting), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            log.info("Stopped while loading")
            return
        self._tell_loading(begun, starting.exception())
        starting.result()
        with _listening(self._pod.group) as listener:
            serving = asyncio.create_task(self._server.serve(sockets=[listener]))
            log.info("Ready on port %d", listener.getsockname()[1])
            await asyncio.wait((stopping, serving), return_when=asyncio.FIRST_COMPLETED)
            self._begin_draining()
            await self._drained()
            telling.cancel()
            self._server.should_exit = True
            await serving
        await self._engine.stop()
        self._pod.publish(DONE, self._state())

    def _tell_loading(self, begun: float, error: BaseException | None) -> None:
        group = self._pod.group
        tracing.record(
            Span(
                "load",
                begun,
                time.monotonic(),
                under=made_by_operator(group),
                place=self._loading,
                error="" if error is None else f"{type(error).__name__}: {error}",
                attributes={
                    "arctic.group": group.group,
                    "arctic.revision": group.revision,
                    "arctic.engine": group.spec.engine.name,
                    "gen_ai.request.model": group.served_name,
                },
            )
        )

    def _begin_draining(self) -> None:
        if self._gate.draining:
            return
        log.info("Draining")
        self._gate.drain()
        self._loop.call_later(LINGER, self._close_gate)
        self._pod.publish(DRAINING, self._state())

    def _close_gate(self) -> None:
        clients = (getattr(connection, "client", None) for connection in self._server.server_state.connections)
        self._gate.close(frozenset(tuple(client) for client in clients if client is not None))

    async def _drained(self) -> None:
        """Wait until the gate is closed and no request is left, be it in the engine or on its way to it or from it;
        once it is closed not longer than the manifest allows.

        A second signal ends it at once.
        """
        deadline = time.monotonic() + self._drain_timeout
        while not self._pod.stop.now.is_set():
            if self._gate.closed and not self._gate.inside:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._engine.drain(), _POLL)
                    return
            if self._gate.closed and time.monotonic() >= deadline:
                break
            await asyncio.sleep(_POLL)
        log.warning("Requests are left that did not end in time; they are cancelled")

    async def _tell(self) -> None:
        while True:
            self._pod.publish(self._phase(), self._state())
            await asyncio.sleep(1)

    def _phase(self) -> Phase:
        if self._gate.draining:
            return DRAINING
        return RUNNING if self._engine.ready else STARTING

    def _stats(self) -> Stats:
        """What the engine does, and what the gate knows of that it does not."""
        stats = self._engine.stats()
        return replace(stats, waiting=self._gate.waiting(stats))

    def _state(self) -> InferenceState:
        stats = self._stats()
        return InferenceState(
            ready=self._pod.ready(),
            draining=self._gate.draining,
            running=stats.running,
            waiting=stats.waiting,
            kv_cache_utilization=stats.kv_cache_utilization,
            tokens_per_second=self._metrics.recent_tokens.rate(),
            requests_per_second=self._metrics.recent_requests.rate(),
            ttft_p99_seconds=self._metrics.ttft_p99(),
            loaded=stats.loaded,
            ended=self._metrics.ended,
            failed=self._metrics.failed,
            ttft=_sums(self._metrics.ttft_logs),
            time_per_token=_sums(self._metrics.per_token_logs),
        )


def _sums(logs: LogSums) -> control_pb2.LogSums:
    return control_pb2.LogSums(count=logs.count, sum=logs.sum, sum_of_squares=logs.sum_of_squares)


class _Server(uvicorn.Server):
    """Leaves signals to us."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take none."""
        yield


def _listening(group: InferenceGroup) -> socket.socket:
    """The socket of the HTTP API: on loopback only where the world has no TLS, as its control is. OSError if taken."""
    port = group.ports.http
    try:
        if group.tls_folder is None:
            listener = socket.create_server(("127.0.0.1", port))
        elif socket.has_dualstack_ipv6():
            listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            listener = socket.create_server(("", port))
    except OSError as error:
        raise OSError(error.errno, f"Port {port} for HTTP can't be listened on: {error}") from None
    # Connections have it from their listener. asyncio leaves those alone whose listener it has not made.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
