"""The command: which manifest is planned, and how the plan is printed."""

from pathlib import Path

import click

from arctic_cli.local import volumes_option
from arctic_cli.plan import serving_report, training_report
from arctic_cli.plan.choice import Choice
from arctic_cli.plan.options import manifest_and_models, mfu_option, model_and_device
from arctic_cli.plan.serving import report_serving
from arctic_cli.plan.training import report_training

_DOES_NOT_FIT = 1


@click.command()
@model_and_device
@mfu_option
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
    costs_file: Path | None,
    mfu: float,
    price: float | None,
    output: str,
    volumes: Path | None,
) -> None:
    """Say what a manifest takes on a device; exit 1 where it doesn't fit, with what to change."""
    choice = Choice(preset, config_file, device_name, devices_per_node, costs_file)
    manifest, models = manifest_and_models(files, volumes)
    if manifest.kind == "ArcticInference":
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
