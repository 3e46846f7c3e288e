"""`arctic report`: the page of a run, from the files in its folder."""

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="File to write [default: report.html in the run's folder].",
)
def report(folder: Path, output: Path | None) -> None:
    """Write the page of the run in FOLDER: its curves, routers, time and attempts."""
    # Imported here: the command alone must run where only the core is installed.
    from arctic_workers.training.report import Run, page, write_page

    try:
        if output is None:
            output = write_page(folder)
        else:
            output.write_text(page(Run.read(folder)), encoding="utf-8")
    except FileNotFoundError as error:
        raise click.ClickException(str(error)) from error
    click.echo(output)
