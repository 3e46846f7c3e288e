"""`arctic validate`: the verdict that the API server would give, without a cluster."""

from pathlib import Path

import click

from arctic_api import GROUP
from arctic_api.world import ExitCode
from arctic_cli.manifest import ManifestError, describe, load


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
def validate(files: tuple[Path, ...]) -> None:
    """Check manifests; print each problem with its file, line and field, and exit 64 if there is any."""
    right = [_is_right(file) for file in files]
    if not all(right):
        raise SystemExit(ExitCode.BAD_INPUT)


def _is_right(file: Path) -> bool:
    """Judge the manifests of ours in a file, and print what is to be said of them."""
    try:
        documents = load(file)
    except ManifestError as error:
        click.echo(error.message, err=True)
        return False
    ours = [document for document in documents if document.ours]
    lines = [describe(file, document, problem) for document in ours for problem in document.problems()]
    if not ours:
        lines.append(f"{file}: no manifest of {GROUP}: write one, or name another file")
    for line in lines:
        click.echo(line, err=True)
    if not lines:
        others = len(documents) - len(ours)
        told = f"; {_count(others, 'other')} not judged" if others else ""
        click.echo(f"{file}: ok ({_count(len(ours), 'manifest')}{told})")
    return not lines


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
