"""`arctic validate`: the verdict that the API server would give, without a cluster."""

from pathlib import Path

import click

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
    failed = False
    for file in files:
        try:
            documents = load(file)
        except ManifestError as error:
            click.echo(error.message, err=True)
            failed = True
            continue
        lines = [describe(file, document, problem) for document in documents for problem in document.problems()]
        for line in lines:
            click.echo(line, err=True)
        if not lines:
            click.echo(f"{file}: ok ({len(documents)} manifest{'' if len(documents) == 1 else 's'})")
        failed = failed or bool(lines)
    if failed:
        raise SystemExit(ExitCode.BAD_INPUT)
