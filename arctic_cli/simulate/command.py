"""The command: which manifest is simulated, on what, and against which requests or failures."""

from pathlib import Path
from typing import Any

import click

from arctic_api.common import parse_duration
from arctic_cli.local import volumes_option
from arctic_cli.manifest import ManifestError
from arctic_cli.plan.choice import Choice
from arctic_cli.plan.options import manifest_and_models, mfu_option, model_and_device
from arctic_cli.plan.serving import report_serving
from arctic_cli.plan.training import report_training


class _Duration(click.ParamType[float]):
    name = "duration"

    def __init__(self, *, may_be_0: bool = True) -> None:
        self._may_be_0 = may_be_0

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds of what is written as in a manifest."""
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not seconds and not self._may_be_0:
            self.fail(f"{value} is no time at all: write more, such as 1s", param, ctx)
        return seconds


@click.command()
@model_and_device
@mfu_option
@click.option(
    "--requests",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='Of a service: lines of JSON, {"seconds": 1.5, "prompt": 100, "answer": 20}, in the order in which they come.',
)
@click.option(
    "--node-mtbf",
    type=_Duration(may_be_0=False),
    default="43800h",
    show_default=True,
    help="Mean time between a node's failures.",
)
@click.option("--spares", type=click.IntRange(0), default=0, show_default=True, help="Nodes that stand by.")
@click.option("--repair", type=_Duration(), default="24h", show_default=True, help="Until a failed node stands by.")
@click.option(
    "--checkpoint-stop",
    type=_Duration(may_be_0=False),
    default="10s",
    show_default=True,
    help="That one stops the steps.",
)
@click.option("--restart", type=_Duration(), default="5m", show_default=True, help="Until steps go on.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of failures.")
@volumes_option
def simulate(
    files: tuple[Path, ...],
    preset: str | None,
    config_file: Path | None,
    device_name: str | None,
    devices_per_node: int | None,
    costs_file: Path | None,
    mfu: float,
    requests: Path | None,
    node_mtbf: float,
    spares: int,
    repair: float,
    checkpoint_stop: float,
    restart: float,
    seed: int,
    volumes: Path | None,
) -> None:
    """Simulate a service that answers a trace of requests, or a training whose nodes fail.

    A service is one group with its real scheduler, whose steps take what `--costs` predict, or else the least that
    `arctic plan` has for them.
    """
    try:  # who installs the command alone has no simpy
        from arctic_cli.simulate.serving import simulate_serving
        from arctic_cli.simulate.training import Failures, simulate_training
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is not installed, with which events are simulated: install arctic-kubernetes[planning]"
        ) from error

    choice = Choice(preset, config_file, device_name, devices_per_node, costs_file)
    manifest, models = manifest_and_models(files, volumes)
    if manifest.kind != "ArcticInference":
        failures = Failures(node_mtbf, spares, repair, checkpoint_stop, restart, seed)
        click.echo(simulate_training(report_training(manifest, models, choice, mfu, None), manifest, failures))
    elif requests is None:
        raise ManifestError("--requests is missing: name a file with the requests that the service is to answer")
    else:
        click.echo(simulate_serving(report_serving(manifest, models, choice, None), manifest, requests))
