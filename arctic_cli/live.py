"""`arctic pause|resume|checkpoint|stop`: how a running training is told, on a cluster by its manifest."""

import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from arctic_api import GROUP, VERSION
from arctic_api.training import PLURAL
from arctic_api.world import CHECKPOINT_REQUEST
from arctic_cli.local import DEFAULT_NAMESPACE, volumes_option
from arctic_cli.running import ends_with, tell
from arctic_cluster.paths import default_volumes

POLL_SECONDS = 1.0
Manifest = dict[str, Any]


class Trainings:
    """The trainings of one namespace of the cluster that the kubeconfig names."""

    def __init__(self, namespace: str | None) -> None:
        """Use the context's namespace if none is named."""
        try:
            from kubernetes import client, config
        except ModuleNotFoundError as error:
            raise click.ClickException(
                "kubernetes is not installed, by which a cluster is spoken to: install arctic-kubernetes[operator]"
            ) from error
        try:
            config.load_kube_config()
            context = config.list_kube_config_contexts()[1]["context"]
        except (config.ConfigException, OSError) as error:
            raise click.ClickException(
                f"no cluster: {error}: set KUBECONFIG, or add --local for a training of `arctic train`"
            ) from error
        self._namespace = namespace or context.get("namespace") or DEFAULT_NAMESPACE
        self._api = client.CustomObjectsApi()

    def get(self, name: str) -> Manifest:
        """Return a training."""
        found: Manifest = self._ask(self._api.get_namespaced_custom_object, name)
        return found

    def patch(self, name: str, change: Manifest) -> Manifest:
        """Change a training as a merge patch says, and return it."""
        changed: Manifest = self._ask(self._api.patch_namespaced_custom_object, name, change)
        return changed

    def _ask(self, call: Callable[..., Any], name: str, *arguments: Any) -> Any:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return call(GROUP, VERSION, self._namespace, PLURAL, name, *arguments, _request_timeout=30)
        except ApiException as error:
            raise click.ClickException(_sentence(error)) from error
        except HTTPError as error:
            raise click.ClickException(f"the cluster can't be reached: {error}") from error


def _sentence(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"


def _on_a_training(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        volumes_option,
        click.option("--local", is_flag=True, help="It is one that `arctic train` runs on this machine."),
        click.option("-n", "--namespace", default=None, help="Its namespace [default: the context's]."),
        click.argument("name"),
    ):
        command = option(command)
    return command


def _tell_local(name: str, namespace: str | None, volumes: Path | None, command: str, stage: str | None = None) -> None:
    said = tell(volumes or default_volumes(), namespace or DEFAULT_NAMESPACE, name, command, stage)
    click.echo(f"{name}: {said}")


@click.command()
@_on_a_training
def pause(name: str, namespace: str | None, local: bool, volumes: Path | None) -> None:
    """Hold a training between two steps; its pods stay."""
    if local:
        return _tell_local(name, namespace, volumes, "pause")
    Trainings(namespace).patch(name, {"spec": {"paused": True}})
    return click.echo(f"{name}: spec.paused is true: it holds after its step, and its state is Paused then")


@click.command()
@_on_a_training
def resume(name: str, namespace: str | None, local: bool, volumes: Path | None) -> None:
    """Let a paused training go on."""
    if local:
        return _tell_local(name, namespace, volumes, "resume")
    Trainings(namespace).patch(name, {"spec": {"paused": False}})
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
    trainings = Trainings(namespace)
    if stage is None:
        stage = trainings.get(name).get("status", {}).get("stage")
        if stage is None:
            raise click.ClickException(f"{name} has begun no stage yet: name one by --after")
    trainings.patch(name, {"spec": {"stopAfter": stage or None}})
    return click.echo(f"{name}: {ends_with(stage)}")


@click.command()
@_on_a_training
@click.option("--timeout", default=600.0, show_default=True, help="Seconds to wait for it.")
def checkpoint(name: str, namespace: str | None, local: bool, volumes: Path | None, timeout: float) -> None:
    """Have a training write a checkpoint now, and wait until it is committed."""
    if local:
        return _tell_local(name, namespace, volumes, "checkpoint")
    trainings, token = Trainings(namespace), uuid.uuid4().hex[:12]
    manifest = trainings.patch(name, {"metadata": {"annotations": {CHECKPOINT_REQUEST: token}}})
    deadline = time.monotonic() + timeout
    while (answer := _answer(manifest)).get("token") != token:
        if time.monotonic() > deadline:
            raise click.ClickException(
                f"{name}: no checkpoint within {timeout:.0f} s (state {manifest.get('status', {}).get('state')}); it "
                f"is written as soon as the training can, and status.checkpointRequest has the token {token} then"
            )
        time.sleep(POLL_SECONDS)
        manifest = trainings.get(name)
    return click.echo(f"{name}: the checkpoint of step {answer['step']} is committed: {answer['uri']}")


def _answer(manifest: Manifest) -> Manifest:
    answer: Manifest = manifest.get("status", {}).get("checkpointRequest", {})
    return answer
