"""The command itself."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from arctic_api.ablation import KIND, ArcticAblationSpec
from arctic_api.world import ExitCode
from arctic_cli.data import look_at_data
from arctic_cli.forecast import dry_run_options
from arctic_cli.local import file_option, identity, local_mounts, run_folder_of, stop_flag, volumes_option
from arctic_cli.manifest import ManifestError, load_one
from arctic_cli.running import alone
from arctic_cluster.paths import default_volumes

if TYPE_CHECKING:
    from arctic_ablation.study import Study


@click.command()
@file_option
@volumes_option
@dry_run_options
def ablate(file: Path, volumes: Path | None, dry_run: bool, tokens_per_second: float | None) -> None:
    """Run an ArcticAblation on this machine, and go on with it if it ran before.

    Each training is one process here, whatever its parallelism: `arctic report` shows any of them by its folder.
    """
    manifest, volumes = load_one(file, KIND), volumes or default_volumes()
    spec = ArcticAblationSpec.model_validate(manifest["spec"])
    if spec.budget_gpu_hours is not None:
        raise ManifestError(
            f"{file}: spec.budgetGPUHours: GPU hours are counted on a cluster alone: write budget, in tokens"
        )
    study = study_of(manifest["metadata"]["name"], spec)
    _check(file, study, spec, volumes, manifest)
    if dry_run:
        from arctic_cli.ablate.dry_run import describe

        click.echo(describe(spec, study, tokens_per_second))
        return
    with alone(volumes, *identity(manifest)):
        sys.exit(_run(manifest, spec, study, volumes))


def study_of(name: str, spec: ArcticAblationSpec) -> "Study":
    """Return the study of an ablation."""
    from arctic_ablation.study import VariantStudy

    if spec.mixture is None:
        return VariantStudy(name, spec)
    from arctic_ablation.swarm.study import SwarmStudy

    return SwarmStudy(name, spec)


def _check(file: Path, study: "Study", spec: ArcticAblationSpec, volumes: Path, manifest: dict[str, Any]) -> None:
    """Refuse variants that are no right trainings, and sources that can't be read, before anything starts."""
    from arctic_ablation.faults import fault

    if wrong := fault(study):
        raise ManifestError(f"{file}: {wrong}")
    mounts = local_mounts(spec.training.template, volumes)
    if faults := look_at_data(spec.training, mounts, run_folder_of(_as_training(manifest), volumes)).problems:
        raise ManifestError("\n".join(f"{file}: {fault}" for fault in faults))


def _as_training(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest that names the folder of an ablation: it has one as a training has."""
    return {"metadata": manifest["metadata"], "spec": manifest["spec"]["training"]}


def _run(manifest: dict[str, Any], spec: ArcticAblationSpec, study: "Study", volumes: Path) -> int:
    from arctic_ablation.study import TooFew
    from arctic_cli.ablate.running import Runner
    from arctic_cli.ablate.summary import summary
    from arctic_cli.ablate.trials import Shelf
    from arctic_workers.ablation.writing import write

    metadata = manifest["metadata"]
    folder = run_folder_of(_as_training(manifest), volumes)
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    shelf = Shelf(volumes, metadata.get("namespace"), metadata["name"], spec.reuse, spec.objective)
    runner, stop = Runner(study, spec, shelf, logs), stop_flag()
    try:
        whole = runner.run(stop)
        found = write(folder, metadata["name"], spec, study, runner.found(), whole=whole)
        click.echo(summary(found, folder))
    except TooFew as error:
        raise click.ClickException(f"{error}: {logs}") from error
    if whole and found["best"] is None:
        raise click.ClickException(f"no training was judged: see above, and {logs}")
    if whole:
        return ExitCode.DONE
    if stop.requested.is_set():
        click.echo("interrupted: run it again to go on", err=True)
        return ExitCode.INTERRUPTED
    click.echo("the budget is spent before all was found: write a larger one to go on", err=True)
    return ExitCode.DONE
