"""`arctic pause|resume|checkpoint|stop`: how a running training is told, on a cluster by its manifest."""

from collections.abc import Callable
from pathlib import Path

import click

from arctic_api.training import KIND
from arctic_api.world import CHECKPOINT_REQUEST
from arctic_cli.local import DEFAULT_NAMESPACE, volumes_option
from arctic_cli.on_cluster import Manifest, OnCluster, refuse_ended
from arctic_cli.running import ends_with, tell
from arctic_cluster.paths import default_volumes


def _on_a_training(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        volumes_option,
        click.option("--local", is_flag=True, help="It is one that `arctic train` runs on this machine."),
        click.option("-n", "--namespace", default=None, help="Its namespace [default: the context's]."),
        click.argument("name"),
    ):
        command = option(command)
    return command


def _find(name: str, namespace: str | None) -> tuple[OnCluster, Manifest]:
    """Return a training that may still be told something, and its cluster."""
    cluster = OnCluster(namespace, "set KUBECONFIG, or add --local for a training of `arctic train`")
    training = cluster.get(KIND, name)
    refuse_ended(training)
    return cluster, training


def _tell_local(name: str, namespace: str | None, volumes: Path | None, command: str, stage: str | None = None) -> None:
    said = tell(volumes or default_volumes(), namespace or DEFAULT_NAMESPACE, name, command, stage)
    click.echo(f"{name}: {said}")


@click.command()
@_on_a_training
def pause(name: str, namespace: str | None, local: bool, volumes: Path | None) -> None:
    """Hold a training between two steps; its pods stay."""
    if local:
        return _tell_local(name, namespace, volumes, "pause")
    cluster, _ = _find(name, namespace)
    cluster.patch(KIND, name, {"spec": {"paused": True}})
    return click.echo(f"{name}: spec.paused is true: it holds after its step, and its state is Paused then")


@click.command()
@_on_a_training
def resume(name: str, namespace: str | None, local: bool, volumes: Path | None) -> None:
    """Let a paused training go on."""
    if local:
        return _tell_local(name, namespace, volumes, "resume")
    cluster, _ = _find(name, namespace)
    cluster.patch(KIND, name, {"spec": {"paused": False}})
    return click.echo(f"{name}: spec.paused is false: it goes on")


@click.command()
@_on_a_training
@click.option("--after", "stage", default=None, help="The stage to end with [default: the one under way].")
@click.option("--cancel", is_flag=True, help="Train all stages after all.")
def stop(name: str, namespace: str | None, local: bool, volumes: Path | None, stage: str | None, cancel: bool) -> None:
    """End a training with a stage, as succeeded and with its export."""
    stage = "" if cancel else stage
    if local:
        return _tell_local(name, namespace, volumes, "stop", stage)
    cluster, training = _find(name, namespace)
    if stage is None:
        stage = training.get("status", {}).get("stage")
        if stage is None:
            raise click.ClickException(f"{name} has begun no stage yet: name one by --after")
    cluster.patch(KIND, name, {"spec": {"stopAfter": stage or None}})
    return click.echo(f"{name}: {ends_with(stage)}")


@click.command()
@_on_a_training
@click.option("--timeout", default=600.0, show_default=True, help="Seconds to wait for it.")
def checkpoint(name: str, namespace: str | None, local: bool, volumes: Path | None, timeout: float) -> None:
    """Have a training write a checkpoint now, and wait until it is committed."""
    if local:
        return _tell_local(name, namespace, volumes, "checkpoint")
    cluster, _ = _find(name, namespace)
    answer = cluster.request(KIND, name, CHECKPOINT_REQUEST, "checkpointRequest", timeout)
    if not answer.over:
        raise click.ClickException(
            f"{name}: no checkpoint within {timeout:.0f} s (state {answer.state}); it is written as soon as the "
            f"training can, and status.checkpointRequest has the token {answer.token} then"
        )
    return click.echo(f"{name}: the checkpoint of step {answer.said['step']} is committed: {answer.said['uri']}")
