"""The command: which manifest is planned, and how the plan is printed."""

from pathlib import Path

import click

from arctic_cli.local import volumes_option
from arctic_cli.manifest import ManifestError
from arctic_cli.models import Manifest, Models, read_manifests
from arctic_cli.plan import serving_report, training_report
from arctic_cli.plan.choice import CPU, Choice
from arctic_cli.plan.serving import report_serving
from arctic_cli.plan.training import report_training
from arctic_cluster.paths import default_volumes
from arctic_model.config import PRESETS
from arctic_model.planning.devices import DEVICES

_DOES_NOT_FIT = 1


@click.command()
@click.option(
    "-f",
    "--filename",
    "files",
    multiple=True,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Manifest of an ArcticTraining or an ArcticInference; with the latter, another may be that of the "
    "ArcticTraining whose export it serves.",
)
@click.option("--preset", type=click.Choice(sorted(PRESETS)), help="The model, instead of the manifest's.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="config.json of the model, instead of the manifest's.",
)
@click.option(
    "--device",
    "device_name",
    type=click.Choice([*DEVICES, CPU]),
    help="What it runs on; cpu is this machine as it is now [default: h100; cpu for the native engine, and for a "
    "training whose resources name no GPU].",
)
@click.option("--devices-per-node", type=click.IntRange(1, 64), help="GPUs of a node [default: 8].")
@click.option(
    "--mfu",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.4,
    show_default=True,
    help="Model FLOPs utilization at which a training's time and cost are said.",
)
@click.option(
    "--price", type=click.FloatRange(0), help="US dollars a GPU hour [default: the training's pricePerGPUHour]."
)
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="table is for people.")
@volumes_option
def plan(
    files: tuple[Path, ...],
    preset: str | None,
    config_file: Path | None,
    device_name: str | None,
    devices_per_node: int | None,
    mfu: float,
    price: float | None,
    output: str,
    volumes: Path | None,
) -> None:
    """Say what a manifest takes on a device; exit 1 where it doesn't fit, with what to change."""
    choice = Choice(preset, config_file, device_name, devices_per_node)
    services, trainings = read_manifests(files, "ArcticInference"), read_manifests(files, "ArcticTraining")
    models = Models(trainings, volumes or default_volumes())
    manifest = _one(files, services or trainings)
    if services:
        serving = report_serving(manifest, models, choice, price)
        text = serving_report.render_json(serving) if output == "json" else serving_report.render_table(serving)
        fits = serving.plan.fits
    else:
        training = report_training(manifest, models, choice, mfu, price)
        text = training_report.render_json(training) if output == "json" else training_report.render_table(training)
        fits = training.plan.fits
    click.echo(text)
    if not fits:
        raise SystemExit(_DOES_NOT_FIT)


def _one(files: tuple[Path, ...], found: list[Manifest]) -> Manifest:
    if len(found) != 1:
        names = ", ".join(map(str, files))
        raise ManifestError(
            f"{names}: has {len(found)} manifests that could be planned: write exactly one ArcticInference, or "
            "exactly one ArcticTraining and nothing that serves it"
        )
    return found[0]
