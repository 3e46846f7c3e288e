"""`arctic reproduce`: what differs between what made a run and what is here now."""

import os
from pathlib import Path

import click

from arctic_api.training import ArcticTrainingSpec, TrainingParallelism
from arctic_api.world import without_pods
from arctic_cli.manifest import load_one


@click.command()
@click.argument("run_folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-f",
    "--filename",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Manifest to compare with the one that was trained.",
)
def reproduce(run_folder: Path, file: Path | None) -> None:
    """Say, line by line, what would keep a training here from giving the same bits as the run in RUN_FOLDER.

    Exits 0 only where nothing does. RUN_FOLDER is a run's folder in its store, NAMESPACE/NAME-UID5.
    """
    # The other commands run where torch is not installed.
    from arctic_workers.training.record import differences_here, newest_record
    from arctic_workers.training.supervisor import threads_of_a_rank

    spec = None
    if file is not None:
        spec = without_pods(ArcticTrainingSpec.model_validate(load_one(file, "ArcticTraining")["spec"])).wire()
    try:
        record = newest_record(run_folder)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    parallelism = TrainingParallelism.model_validate((spec or record["manifest"]).get("parallelism", {}))
    lines = differences_here(record, run_folder, threads_of_a_rank(parallelism, os.environ, local=True), spec)
    for line in lines:
        click.echo(line)
    if lines:
        raise SystemExit(1)
    click.echo(f"nothing differs from attempt {record['attempt']}, which began at {record['time']}")
