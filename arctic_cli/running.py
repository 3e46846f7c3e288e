"""Trainings that run on this machine: where `arctic train` leaves word of its world, and how that is spoken to."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from arctic_api.world import TrainingWorld
from arctic_cluster.files import readable_by_all
from arctic_workers.control.ports import LOOPBACK

if TYPE_CHECKING:
    from arctic_rpc.control_pb2_grpc import ControlStub

CALL_SECONDS = 600.0
"""A world looks at commands at the end of its step; a checkpoint is answered once it is committed."""


def _place(volumes: Path, namespace: str, name: str) -> Path:
    return volumes / ".running" / namespace / f"{name}.json"


@contextmanager
def alone(volumes: Path, namespace: str, name: str) -> Iterator[None]:
    """Be the only process here that runs a training, or an ablation, meanwhile; a crash ends that too.

    Two of them would take the store from each other in turns, and both would fail in the end. Raises ClickException
    where another runs it.
    """
    place = _place(volumes, namespace, name).with_suffix(".lock")
    with readable_by_all():  # it may be the first thing in the folder of all claims
        place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise click.ClickException(
                f"process {file.read()} runs {name} of namespace {namespace} here already: let it, or end it first"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def announced(volumes: Path, world: TrainingWorld) -> Iterator[None]:
    """Let others on this machine find the first pod of a world while it runs."""
    place = _place(volumes, world.namespace, world.name)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps({"control": world.ports.control}))
    try:
        yield
    finally:
        place.unlink(missing_ok=True)


def tell(volumes: Path, namespace: str, name: str, command: str, stage: str | None = None) -> str:
    """Tell a training on this machine to pause, resume, write a checkpoint or stop; return what to say of it.

    Args:
        volumes: the folder of claims that `arctic train` was given.
        namespace, name: of its manifest.
        command: `pause`, `resume`, `checkpoint` or `stop`.
        stage: to end with; the one under way by default, all stages if it is empty.
    """
    import grpc

    from arctic_rpc import control_pb2, control_pb2_grpc

    try:
        port = json.loads(_place(volumes, namespace, name).read_text())["control"]
    except FileNotFoundError:
        raise click.ClickException(
            f"no training {name!r} of namespace {namespace!r} runs here with its claims in {volumes}: name its "
            "--volumes, or leave --local out for one on a cluster"
        ) from None
    # The port is on loopback: no proxy leads there.
    with grpc.insecure_channel(f"{LOOPBACK}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            return _tell(control_pb2_grpc.ControlStub(channel), control_pb2, command, stage)  # type: ignore[no-untyped-call]
        except grpc.RpcError as error:
            gone = error.code() is grpc.StatusCode.UNAVAILABLE
            words = "its first pod does not answer: it is starting still, or has ended" if gone else error.details()
            raise click.ClickException(f"{name}: {words}") from error


def _tell(stub: "ControlStub", messages: Any, command: str, stage: str | None) -> str:
    match command:
        case "pause":
            stub.Pause(messages.PauseRequest(), timeout=CALL_SECONDS)
            return "paused"
        case "resume":
            stub.Resume(messages.ResumeRequest(), timeout=CALL_SECONDS)
            return "goes on"
        case "checkpoint":
            committed = stub.Checkpoint(messages.CheckpointRequest(), timeout=CALL_SECONDS).checkpoint
            return f"the checkpoint of step {committed.step} is committed: {committed.uri}"
    if stage is None:
        stage = next(stub.Watch(messages.WatchRequest(), timeout=CALL_SECONDS)).training.stage
    stub.StopAfter(messages.StopAfterRequest(stage=stage), timeout=CALL_SECONDS)
    return ends_with(stage)


def ends_with(stage: str) -> str:
    """Return the sentence on the stage that a training ends with."""
    return f"ends with stage {stage}" if stage else "trains all stages"
