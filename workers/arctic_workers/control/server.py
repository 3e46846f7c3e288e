"""The gRPC server that every worker carries: control, health and reflection. What it controls is behind `Commands`."""

# ruff: noqa: ARG002, N802 - names and arguments are the protocol's

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from arctic_api.world import World
from arctic_rpc import control_pb2, control_pb2_grpc
from arctic_workers.control.commands import Commands, NotNow, Unsupported
from arctic_workers.control.loop import LoopThread, in_thread
from arctic_workers.control.state import StateBoard
from arctic_workers.control.tls import RotatingCredentials

log = logging.getLogger(__name__)

Result = TypeVar("Result")

SERVICE = control_pb2.DESCRIPTOR.services_by_name["Control"].full_name
UNBOUNDED = 24 * 3600.0
"""Seconds that a command may take when its caller set no deadline."""
OPTIONS = [
    # A dead operator's streams end within 80 s; the operator itself may ping as often.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.max_concurrent_streams", 64),
    # Two workers on one port would each get some of the calls: let the second one fail instead.
    ("grpc.so_reuseport", 0),
]


class _Control(control_pb2_grpc.ControlServicer):
    """Answers from the board and the commands."""

    def __init__(self, board: StateBoard, commands: Commands) -> None:
        self._board = board
        self._commands = commands

    async def _run(self, context: grpc.aio.ServicerContext, command: Callable[[float], Result]) -> Result:
        remaining = context.time_remaining()
        timeout = UNBOUNDED if remaining is None else remaining
        try:
            return await in_thread("command", lambda: command(timeout))
        except NotNow as refusal:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(refusal))
        except Unsupported as refusal:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, str(refusal))
        except TimeoutError as error:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, str(error) or "The command took too long.")
        except Exception as error:
            log.exception("A command failed")
            await context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
        raise AssertionError("abort always raises")

    async def Watch(
        self, request: control_pb2.WatchRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[control_pb2.WorkerState]:
        async for state in self._board.watch():
            yield state

    async def Checkpoint(
        self, request: control_pb2.CheckpointRequest, context: grpc.aio.ServicerContext
    ) -> control_pb2.CheckpointReply:
        report = await self._run(context, self._commands.checkpoint)
        reply = control_pb2.CheckpointReply()
        reply.checkpoint.step, reply.checkpoint.tokens, reply.checkpoint.uri = report.step, report.tokens, report.uri
        reply.checkpoint.time.FromJsonString(report.time)
        return reply

    async def Pause(
        self, request: control_pb2.PauseRequest, context: grpc.aio.ServicerContext
    ) -> control_pb2.PauseReply:
        await self._run(context, self._commands.pause)
        return control_pb2.PauseReply()

    async def Resume(
        self, request: control_pb2.ResumeRequest, context: grpc.aio.ServicerContext
    ) -> control_pb2.ResumeReply:
        await self._run(context, self._commands.resume)
        return control_pb2.ResumeReply()

    async def StopAfter(
        self, request: control_pb2.StopAfterRequest, context: grpc.aio.ServicerContext
    ) -> control_pb2.StopAfterReply:
        await self._run(context, lambda timeout: self._commands.stop_after(request.stage, timeout))
        return control_pb2.StopAfterReply()

    async def Drain(
        self, request: control_pb2.DrainRequest, context: grpc.aio.ServicerContext
    ) -> control_pb2.DrainReply:
        await self._run(context, self._commands.drain)
        return control_pb2.DrainReply()

    async def Stop(self, request: control_pb2.StopRequest, context: grpc.aio.ServicerContext) -> control_pb2.StopReply:
        await self._run(context, self._commands.stop)
        return control_pb2.StopReply()

    async def Profile(
        self, request: control_pb2.ProfileRequest, context: grpc.aio.ServicerContext
    ) -> control_pb2.ProfileReply:
        if request.steps < 1:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"steps is {request.steps}: ask for 1 or more.")
        uri = await self._run(context, lambda timeout: self._commands.profile(request.steps, timeout))
        return control_pb2.ProfileReply(uri=uri)


def add_control(server: grpc.aio.Server, board: StateBoard, commands: Commands) -> None:
    """Let a gRPC server answer for a worker."""
    control_pb2_grpc.add_ControlServicer_to_server(_Control(board, commands), server)  # type: ignore[no-untyped-call]


class ControlServer:
    """Serves one worker's control on a background thread, from `start` to `stop` or for a with-statement."""

    def __init__(
        self,
        world: World,
        board: StateBoard,
        commands: Commands,
        ready: Callable[[], bool],
    ) -> None:
        """Prepare to serve on `world.ports.control` (0: a free one); `ready` is what the health service tells.

        TLSFolderError if the world's certificates can't be used.
        """
        self._world = world
        self._board = board
        self._ready = ready
        self._commands = commands
        self._tls = (
            None
            if world.tls_folder is None
            else RotatingCredentials(world.tls_folder, f"{world.name}.{world.namespace}")
        )
        self.port = 0

    def __enter__(self) -> "ControlServer":
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def start(self) -> int:
        """Serve; return the port. OSError if it is taken."""
        self._thread = LoopThread("control")
        try:
            self._thread.call(self._start())
        except BaseException:
            self._thread.stop()
            raise
        return self.port

    def stop(self, grace: float = 2.0) -> None:
        """Deliver the newest state to every watcher, give calls `grace` seconds, and end."""
        self._thread.call(self._stop(grace))
        self._thread.stop()

    async def _start(self) -> None:
        # Held for the life of the process: with the last object of grpc.aio its poller would be shut down, which can
        # wait for ever (grpc/grpc#40989) and hold up the process's end.
        grpc.aio.init_grpc_aio()
        self._server = grpc.aio.server(options=OPTIONS)
        add_control(self._server, self._board, self._commands)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        wanted = self._world.ports.control
        try:
            # Without TLS everybody who reaches the port is obeyed, so that is for this machine's own processes.
            self.port = (
                self._server.add_insecure_port(f"127.0.0.1:{wanted}")
                if self._tls is None
                else self._server.add_secure_port(f"[::]:{wanted}", self._tls.credentials)
            )
        except RuntimeError as error:
            raise OSError(f"Port {wanted} for gRPC control can't be listened on; is it taken? ({error})") from None
        await self._tell_health()
        await self._server.start()
        self._following = asyncio.create_task(self._follow_health())

    async def _tell_health(self) -> None:
        try:
            ready = self._ready()
        except Exception:
            log.exception("Readiness could not be told")
            ready = False
        serving = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", SERVICE):
            await self._health.set(service, serving)

    async def _follow_health(self) -> None:
        while True:
            await asyncio.sleep(1)
            await self._tell_health()

    async def _stop(self, grace: float) -> None:
        self._following.cancel()
        await self._health.enter_graceful_shutdown()
        self._board.close()
        await self._server.stop(grace)
