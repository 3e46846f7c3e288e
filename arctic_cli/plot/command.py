"""The command: files that others have written, drawn by what is in them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

Content = dict[str, Any]


@click.command()
@click.argument(
    "files", nargs=-1, required=True, metavar="FILE...", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("plots"),
    show_default=True,
    help="Folder for the pictures.",
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(["png", "svg"]),
    multiple=True,
    default=("png", "svg"),
    show_default=True,
    help="Of the pictures; several times for several.",
)
def plot(files: Sequence[Path], output: Path, formats: Sequence[str]) -> None:
    """Draw FILE: results.json of an ablation or of evaluations, or what `arctic plan -o json` has written.

    Several evaluations are drawn side by side.
    """
    try:  # who installs the command alone has no matplotlib
        from arctic_cli.plot.drawing import drawn
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is not installed, by which pictures are drawn: install arctic-kubernetes[plots]"
        ) from error
    try:
        for name, figure in drawn(*_read(files)):
            output.mkdir(parents=True, exist_ok=True)
            for ending in formats:
                path = output / f"{name}.{ending}"
                figure.savefig(path, dpi=200, metadata={"Date": None} if ending == "svg" else None)
                click.echo(path)
    except KeyError as error:
        raise click.ClickException(f"{files[0]} has no {error}: it was written by another release") from error


def _read(files: Sequence[Path]) -> tuple[str, list[Content]]:
    """Return of what kind the files are, and what is in them."""
    contents = [_content(file) for file in files]
    kinds = [(file, _kind(content)) for file, content in zip(files, contents, strict=True)]
    for file, kind in kinds:
        if kind is None:
            raise click.ClickException(
                f"{file} is nothing that is drawn: name results.json of an ablation or an evaluation, or what "
                "`arctic plan -o json` has written"
            )
    (first, kind), *others = kinds
    assert kind is not None
    if others and (kind != "evaluation" or any(other != kind for _, other in others)):
        raise click.ClickException(
            f"{first} and {others[0][0]} can't be drawn together: evaluations can, all else is drawn file by file"
        )
    return kind, contents


def _content(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise click.ClickException(f"{file} can't be read as JSON: {error}") from error


def _kind(content: Any) -> str | None:
    """Return what a file is about, by what none of the others has."""
    has = content.keys() if isinstance(content, dict) else ()
    if "ranking" in has and "curves" in has:
        return "ablation"
    if "suites" in has and "sampling" in has:
        return "evaluation"
    if "ranks" in has and "batches" in has:
        return "service"
    return "training" if "stages" in has and "memory" in has else None
