"""Options that say what is planned or simulated, and on what."""

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import click

from arctic_cli.manifest import ManifestError
from arctic_cli.models import Manifest, Models, read_manifests
from arctic_cli.plan.choice import CPU
from arctic_cluster.paths import default_volumes
from arctic_model.config import PRESETS
from arctic_model.planning.devices import DEVICES

_MODEL_AND_DEVICE = (
    click.option(
        "-f",
        "--filename",
        "files",
        multiple=True,
        required=True,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Manifest of an ArcticTraining or an ArcticInference; with the latter, another may be that of the "
        "ArcticTraining whose export it serves.",
    ),
    click.option("--preset", type=click.Choice(sorted(PRESETS)), help="The model, instead of the manifest's."),
    click.option(
        "--config",
        "config_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="config.json of the model, instead of the manifest's.",
    ),
    click.option(
        "--device",
        "device_name",
        type=click.Choice([*DEVICES, CPU]),
        help="What it runs on; cpu is this machine as it is now [default: h100; cpu for the native engine, and for a "
        "training whose resources name no GPU].",
    ),
    click.option("--devices-per-node", type=click.IntRange(1, 64), help="GPUs of a node [default: 8]."),
    click.option(
        "--costs",
        "costs_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="What `python -m benchmarks.planner` has measured on this machine: how long steps take is predicted too.",
    ),
)
mfu_option = click.option(
    "--mfu",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.4,
    show_default=True,
    help="Model FLOPs utilization at which a training's time and cost are said.",
)


def model_and_device(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options for its manifests, model and device."""
    return reduce(lambda decorated, option: option(decorated), reversed(_MODEL_AND_DEVICE), command)


def manifest_and_models(files: tuple[Path, ...], volumes: Path | None) -> tuple[Manifest, Models]:
    """Return the one manifest that is asked about, and the models that it may name.

    Raises ManifestError where files have others, or none.
    """
    services, trainings = read_manifests(files, "ArcticInference"), read_manifests(files, "ArcticTraining")
    models = Models(trainings, volumes or default_volumes())
    return _one_manifest(files, services or trainings), models


def _one_manifest(files: tuple[Path, ...], found: list[Manifest]) -> Manifest:
    """Return the one manifest that some files have. Raises ManifestError where there are others, or none."""
    if len(found) != 1:
        names = ", ".join(map(str, files))
        raise ManifestError(
            f"{names}: has {len(found)} manifests that could be planned: write exactly one ArcticInference, or "
            "exactly one ArcticTraining and nothing that serves it"
        )
    return found[0]
