"""`arctic validate`: the verdict that the API server would give, without a cluster; and what the data here are like."""

from pathlib import Path

import click

from arctic_api import GROUP
from arctic_api.training import ArcticTrainingSpec
from arctic_api.verdict import Problem, settle
from arctic_api.world import ExitCode
from arctic_cli.data import data_problems
from arctic_cli.local import local_mounts, volumes_option
from arctic_cli.manifest import Document, ManifestError, describe, load
from arctic_cluster.paths import default_volumes


@click.command()
@click.option(
    "-f",
    "--filename",
    "files",
    multiple=True,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Manifest; may be given several times.",
)
@volumes_option
def validate(files: tuple[Path, ...], volumes: Path | None) -> None:
    """Check manifests, and the data of trainings as far as claims have folders on this machine.

    Prints each problem with its file, line and field, and exits with 64 if there is any.
    """
    right = [_is_right(file, volumes or default_volumes()) for file in files]
    if not all(right):
        raise SystemExit(ExitCode.BAD_INPUT)


def _is_right(file: Path, volumes: Path) -> bool:
    """Judge the manifests of ours in a file, and print what is to be said of them."""
    try:
        documents = load(file)
    except ManifestError as error:
        click.echo(error.message, err=True)
        return False
    ours = [document for document in documents if document.ours]
    lines = [describe(file, document, problem) for document in ours for problem in _problems(document, volumes)]
    if not ours:
        lines.append(f"{file}: no manifest of {GROUP}: write one, or name another file")
    for line in lines:
        click.echo(line, err=True)
    if not lines:
        others = len(documents) - len(ours)
        told = f"; {_count(others, 'other')} not judged" if others else ""
        click.echo(f"{file}: ok ({_count(len(ours), 'manifest')}{told})")
    return not lines


def _problems(document: Document, volumes: Path) -> list[Problem]:
    problems = document.problems()
    if problems or document.content["kind"] != "ArcticTraining":
        return problems
    spec = ArcticTrainingSpec.model_validate(settle(document.content)["spec"])
    return list(data_problems(spec, local_mounts(spec.template, volumes)))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
