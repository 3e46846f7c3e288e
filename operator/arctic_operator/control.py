"""The only gRPC I/O of the operator: follows the workers, sends them commands. Decides nothing."""

import asyncio
import functools
import logging
import math
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import grpc
import grpc.aio

from arctic_api.world import SuiteReport
from arctic_operator.certificates import ClientTLS
from arctic_operator.live import (
    CheckpointSeen,
    EvaluationObservation,
    Figures,
    InferenceObservation,
    Live,
    LogSums,
    Observation,
    Phase,
    RoutingSeen,
    SourceSeen,
    StageSeen,
    TrainingObservation,
)
from arctic_rpc import control_pb2, control_pb2_grpc

log = logging.getLogger(__name__)

Key = Hashable

FIRST_STATE_SECONDS = 10.0
"""A worker answers a new stream at once; one that does not within this time is hung, or unreachable."""
BACKOFF_FIRST, BACKOFF_LAST = 0.5, 30.0
"""Seconds between attempts to connect: doubled each time, then half of it drawn."""
CONNECTING_AT_ONCE = 64
"""Handshakes at a time, so that an operator that starts before 3,000 worlds stays responsive."""
CALL_SECONDS = 10.0
CHECKPOINT_SECONDS = 600.0

OPTIONS = [
    # A node that vanished answers no ping; its stream ends after 80 s. Only open streams ping.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Each attempt is a fresh one, with the pod's address of now: gRPC would share its own backoff among channels and
    # resolve a name once in 30 s.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    # Of 3,000 streams each byte counts: the operator sends little, and nobody asks what became of its channels.
    ("grpc.tsi.max_frame_size", 1024),
    ("grpc.enable_channelz", 0),
    ("grpc.max_channel_trace_event_memory_per_node", 0),
    # Workers are in the cluster, where no proxy leads that the API server may be behind.
    ("grpc.enable_http_proxy", 0),
]


class CommandError(Exception):
    """A command that the worker refused or that did not reach it: a gRPC status code's name and a sentence."""

    def __init__(self, code: str, sentence: str) -> None:
        """Hold both."""
        super().__init__(f"{sentence} ({code})")
        self.code = code
        self.sentence = sentence


@dataclass(frozen=True)
class _Target:
    address: str
    server_name: str
    tls: ClientTLS | None

    def channel(self) -> Any:
        """Return a new channel, which ends with its last reference.

        It is not to be closed: `close` looks through all tasks of the loop, and with 3,000 followers that would cost
        more than all the rest.
        """
        if self.tls is None:
            return grpc.aio.insecure_channel(self.address, options=OPTIONS)
        # Pods are addressed by names and addresses that change; what they prove is which object they belong to.
        options = [*OPTIONS, ("grpc.ssl_target_name_override", self.server_name)]
        return grpc.aio.secure_channel(self.address, _credentials(self.tls), options=options)


@functools.lru_cache(maxsize=2)
def _credentials(tls: ClientTLS) -> Any:
    """Return the same credentials for all channels: what TLS makes of them costs each more than its handshake."""
    return grpc.ssl_channel_credentials(tls.authorities, tls.pair.key, tls.pair.certificate)


class _Follower:
    """One world: where it is and what it said last."""

    def __init__(self, target: _Target) -> None:
        self.target = target
        self.live = Live()


class Followers:
    """Keeps one Watch stream a world. All methods belong to one event loop; making it needs none."""

    def __init__(self, on_change: Callable[[Key], None]) -> None:
        """Call `on_change` with a world's key whenever `latest` of it has become another; it must not block."""
        self._on_change = on_change
        self._followers: dict[Key, _Follower] = {}
        # Apart from the followers, which the tasks' frames refer to: a cycle would keep connections open.
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._connecting = asyncio.Semaphore(CONNECTING_AT_ONCE)

    def follow(self, key: Key, address: str, server_name: str, tls: ClientTLS | None) -> None:
        """Follow the world at `address` (`host:port`), which must prove to be `server_name`; without TLS if None.

        May be called again at any time: another address or name begins anew, other certificates are used from the next
        connection on.
        """
        target = _Target(address, server_name, tls)
        follower = self._followers.get(key)
        if follower is not None and replace(follower.target, tls=tls) == target:
            follower.target = target
            return
        self.unfollow(key)
        follower = self._followers[key] = _Follower(target)
        _hold_poller()
        self._tasks[key] = asyncio.create_task(self._follow(key, follower), name=f"follow {key}")

    def unfollow(self, key: Key) -> None:
        """Forget a world; nothing happens if it is not followed."""
        if self._followers.pop(key, None) is not None:
            self._tasks.pop(key).cancel()

    def latest(self, key: Key) -> Live | None:
        """Return how it stands with a world, None if it is not followed."""
        follower = self._followers.get(key)
        return follower.live if follower is not None else None

    async def close(self) -> None:
        """Forget all worlds and wait until their streams are closed."""
        tasks = list(self._tasks.values())
        for key in list(self._followers):
            self.unfollow(key)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def checkpoint(self, key: Key, seconds: float = CHECKPOINT_SECONDS) -> CheckpointSeen:
        """Have a checkpoint written; return it when it is committed."""
        reply = await self._call(key, "Checkpoint", control_pb2.CheckpointRequest(), seconds)
        return _checkpoint(reply.checkpoint)

    async def pause(self, key: Key, seconds: float = CALL_SECONDS) -> None:
        """Hold the world before its next step."""
        await self._call(key, "Pause", control_pb2.PauseRequest(), seconds)

    async def resume(self, key: Key, seconds: float = CALL_SECONDS) -> None:
        """Let it go on."""
        await self._call(key, "Resume", control_pb2.ResumeRequest(), seconds)

    async def stop_after(self, key: Key, stage: str, seconds: float = CALL_SECONDS) -> None:
        """Have it end with this stage; with the last one if it is empty."""
        await self._call(key, "StopAfter", control_pb2.StopAfterRequest(stage=stage), seconds)

    async def drain(self, key: Key, seconds: float = CALL_SECONDS) -> None:
        """Have it take no new requests; its observations tell how far it is."""
        await self._call(key, "Drain", control_pb2.DrainRequest(), seconds)

    async def stop(self, key: Key, seconds: float = CALL_SECONDS) -> None:
        """Have it end in order."""
        await self._call(key, "Stop", control_pb2.StopRequest(), seconds)

    async def profile(self, key: Key, steps: int, seconds: float = CHECKPOINT_SECONDS) -> str:
        """Have a trace of so many steps recorded; return its URI."""
        reply = await self._call(key, "Profile", control_pb2.ProfileRequest(steps=steps), seconds)
        return str(reply.uri)

    async def _call(self, key: Key, method: str, request: Any, seconds: float) -> Any:
        """Call over a channel of its own: commands are rare, and must not depend on how the stream stands."""
        follower = self._followers.get(key)
        if follower is None:
            raise CommandError("FAILED_PRECONDITION", "The operator does not follow this world.")
        stub = control_pb2_grpc.ControlStub(follower.target.channel())  # type: ignore[no-untyped-call]
        call: Callable[..., Awaitable[Any]] = getattr(stub, method)
        try:
            return await call(request, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            raise CommandError(error.code().name, error.details() or f"{method} failed.") from error

    def _set(self, key: Key, follower: _Follower, live: Live) -> None:
        if self._followers.get(key) is follower and live != follower.live:
            follower.live = live
            self._on_change(key)

    async def _follow(self, key: Key, follower: _Follower) -> None:
        """Listen for ever; each connection is made anew after a pause that grows while none of them brings a state."""
        failures = 0
        while True:
            try:
                async for observation in self._watch(follower.target):
                    failures = 0
                    self._set(key, follower, Live(observation, datetime.now(UTC), connected=True))
                error = "the worker ended the stream"
            except TimeoutError:
                error = f"no state came within {FIRST_STATE_SECONDS:.0f} s"
            except grpc.aio.AioRpcError as failure:
                error = failure.details() or failure.code().name
            except Exception as failure:  # whatever one worker sends or is, it must not end the following
                log.exception("Following %s at %s failed", key, follower.target.address)
                error = f"{type(failure).__name__}: {failure}"
            sentence = f"The worker at {follower.target.address} is not followed: {error}."
            self._set(key, follower, replace(follower.live, connected=False, error=sentence))
            pause = min(BACKOFF_LAST, BACKOFF_FIRST * 2 ** min(failures, 16))
            failures += 1
            await asyncio.sleep(random.uniform(pause / 2, pause))

    async def _watch(self, target: _Target) -> AsyncIterator[Observation]:
        """Yield what one stream brings until the worker ends it."""
        # Of the stub nothing is kept but this call: it has an object for each other one.
        call = control_pb2_grpc.ControlStub(target.channel()).Watch(control_pb2.WatchRequest())  # type: ignore[no-untyped-call]
        try:
            async with self._connecting:
                # Not wait_for, which in Python 3.11 drops a cancellation that comes as the answer does.
                async with asyncio.timeout(FIRST_STATE_SECONDS):
                    state = await call.read()
            while state is not grpc.aio.EOF:
                yield observation_of(state)
                state = await call.read()
        finally:
            call.cancel()
            del call


@functools.cache
def _hold_poller() -> None:
    """Keep grpc.aio's poller for the life of the process.

    It would be shut down with the last object of grpc.aio, which waits for ever when the poller has more to say than a
    busy loop has read (grpc/grpc#40989).
    """
    grpc.aio.init_grpc_aio()


def observation_of(state: control_pb2.WorkerState) -> Observation:
    """Return what a worker's message says; ValueError if it is no whole one."""
    phase = Phase.UNKNOWN
    with suppress(ValueError):
        phase = Phase(control_pb2.Phase.Name(state.phase))
    detail = state.WhichOneof("detail")
    if detail == "training":
        return _training(state, phase, state.training)
    if detail == "inference":
        figures = state.inference
        return InferenceObservation(
            uid=state.uid,
            phase=phase,
            message=state.message,
            time=_time(state, "time"),
            ready=figures.ready,
            draining=figures.draining,
            running=figures.running,
            waiting=figures.waiting,
            kv_cache_utilization=_finite(figures.kv_cache_utilization) or 0.0,
            tokens_per_second=_finite(figures.tokens_per_second) or 0.0,
            requests_per_second=_finite(figures.requests_per_second) or 0.0,
            ttft_p99_seconds=_finite(figures.ttft_p99_seconds) or 0.0,
            loaded=_finite(figures.loaded) or 0.0,
            figures=Figures(figures.ended, figures.failed, _log_sums(figures.ttft), _log_sums(figures.time_per_token)),
        )
    if detail == "evaluation":
        suites = tuple(map(_suite, state.evaluation.suites))
        return EvaluationObservation(state.uid, phase, state.message, _time(state, "time"), suites)
    raise ValueError("the worker's state is of nothing that this operator knows; its version is another one")


def _suite(suite: control_pb2.SuiteState) -> SuiteReport:
    figures = [
        {"name": figure.name, "value": figure.value, "low": figure.low, "high": figure.high}
        for figure in suite.figures
        if all(map(math.isfinite, (figure.value, figure.low, figure.high)))
    ]
    told = {name: getattr(suite, name) for name in ("name", "state", "answered", "judged", "planned", "message")}
    return SuiteReport.model_validate(told | {"figures": figures})


def _training(state: control_pb2.WorkerState, phase: Phase, figures: control_pb2.TrainingState) -> TrainingObservation:
    stepped = figures.step > 0  # before the first step of its life, a world has no figures of its own
    return TrainingObservation(
        uid=state.uid,
        epoch=state.epoch,
        phase=phase,
        message=state.message,
        time=_time(state, "time"),
        stage=figures.stage,
        step=figures.step,
        tokens=figures.tokens,
        loss=_finite(figures.loss) if stepped else None,
        tokens_per_second=_finite(figures.tokens_per_second) if stepped else None,
        mfu=_finite(figures.mfu) or None,
        learning_rate=_finite(figures.learning_rate) if stepped else None,
        gradient_norm=_finite(figures.gradient_norm) if stepped else None,
        exposed_communication=_exposed(figures.exposed_communication),
        exposed_by_kind=_exposed_by_kind(figures.exposed_communication),
        expert_chunks=figures.expert_chunks or None,
        stages=tuple(_stage(stage) for stage in figures.stages),
        sources=tuple(_source(source) for source in figures.sources),
        last_checkpoint=_checkpoint(figures.last_checkpoint) if figures.HasField("last_checkpoint") else None,
        stop_after=figures.stop_after,
        loss_by_source={name: loss for name, loss in figures.loss_by_source.items() if math.isfinite(loss)},
        seconds=dict(figures.seconds),
        routing=_routing(figures.routers),
        skipped_updates=figures.skipped_updates,
        recomputes=figures.recomputes,
        planned_memory=figures.planned_memory_bytes,
    )


def _log_sums(sums: control_pb2.LogSums) -> LogSums:
    if not (math.isfinite(sums.sum) and math.isfinite(sums.sum_of_squares)):
        return LogSums()
    return LogSums(sums.count, sums.sum, sums.sum_of_squares)


def _routing(routers: Sequence[control_pb2.RouterState]) -> RoutingSeen | None:
    if not routers:
        return None
    return RoutingSeen(
        imbalance=max(max(router.load, default=0.0) * len(router.load) for router in routers),
        entropy=min(router.entropy for router in routers),
        dead_experts=sum(len(router.dead) for router in routers),
        dropped=max(router.dropped for router in routers),
    )


def _exposed_by_kind(parts: Iterable[control_pb2.ExposedCommunication]) -> dict[str, float]:
    by_kind = defaultdict(list)
    for part in parts:
        by_kind[part.kind].append(part)
    shares = {kind: _exposed(those) for kind, those in by_kind.items()}
    return {kind: share for kind, share in shares.items() if share is not None}


def _exposed(parts: Collection[control_pb2.ExposedCommunication]) -> float | None:
    """Return the exposed share of exchanges together; None where there are none."""
    in_flight = sum(part.in_flight_seconds for part in parts)
    exposed = sum(part.exposed_seconds for part in parts)
    share = _finite(exposed / in_flight) if in_flight > 0 else None
    return None if share is None else min(1.0, max(0.0, share))


def _loss(stage: control_pb2.StageState, name: Literal["initial_validation_loss", "validation_loss"]) -> float | None:
    return _finite(getattr(stage, name)) if stage.HasField(name) else None


def _stage(stage: control_pb2.StageState) -> StageSeen:
    return StageSeen(
        name=stage.name,
        tokens=stage.tokens,
        started=_time(stage, "start_time"),
        completed=_time(stage, "completion_time"),
        checkpoint=stage.checkpoint,
        initial_validation_loss=_loss(stage, "initial_validation_loss"),
        validation_loss=_loss(stage, "validation_loss"),
    )


def _source(source: control_pb2.SourceState) -> SourceSeen:
    return SourceSeen(
        name=source.name,
        documents=source.documents,
        skipped=source.skipped,
        tokens=source.tokens,
        epochs=_finite(source.epochs) or 0.0,
        planned_epochs=_finite(source.planned_epochs) or 0.0,
        unused_splits=tuple(source.unused_splits),
    )


def _checkpoint(checkpoint: control_pb2.CheckpointState) -> CheckpointSeen:
    return CheckpointSeen(checkpoint.step, checkpoint.tokens, checkpoint.uri, _time(checkpoint, "time"))


def _time(message: Any, field: str) -> datetime | None:
    return getattr(message, field).ToDatetime(tzinfo=UTC) if message.HasField(field) else None


def _finite(figure: float) -> float | None:
    """Return the figure, None for one that JSON can't hold."""
    return figure if math.isfinite(figure) else None


def host_of(address: str) -> str:
    """Return an address as it stands before a port: one of IPv6 has colons of its own."""
    return f"[{address}]" if ":" in address else address
