"""`arctic validate`: the verdict that the API server would give, without a cluster; and what the data here are like."""

from pathlib import Path
from typing import Any

import click

from arctic_api import GROUP
from arctic_api.ablation import KIND as ABLATION
from arctic_api.ablation import ArcticAblationSpec
from arctic_api.training import KIND as TRAINING
from arctic_api.training import ArcticTrainingSpec
from arctic_api.verdict import Problem, settle
from arctic_api.world import ExitCode
from arctic_cli.ablate.command import study_of
from arctic_cli.data import Findings, look_at_data
from arctic_cli.local import local_mounts, volumes_option
from arctic_cli.manifest import Document, ManifestError, describe, load
from arctic_cluster.paths import default_volumes

SUFFIXES = (".json", ".yaml", ".yml")
"""Of the files that kubectl takes from a folder."""
_NOT_DRAWN = (
    "its trainings are not judged, as {} is not installed, with which their mixtures are drawn: install it, or "
    "arctic-kubernetes[ablation]"
)


@click.command()
@click.option(
    "-f",
    "--filename",
    "files",
    multiple=True,
    required=True,
    type=click.Path(exists=True, allow_dash=True, path_type=Path),
    help="Manifest, a folder of them, or - for the standard input; may be given several times.",
)
@volumes_option
def validate(files: tuple[Path, ...], volumes: Path | None) -> None:
    """Check manifests, each variant of ablations, and the data of trainings as far as claims have folders here.

    Prints each problem with its file, line and field, and exits with 64 if there is any. Sources that a
    curriculum reads more than once are named too, and are no problem.
    """
    held = volumes or default_volumes()
    right = [_is_right_folder(file, held) if file.is_dir() else _is_right(file, held) for file in files]
    if not all(right):
        raise SystemExit(ExitCode.BAD_INPUT)


def _is_right_folder(folder: Path, volumes: Path) -> bool:
    """Judge the files of a folder that kubectl would take; among others a file may have no manifest of ours."""
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())
    loaded = [(file, documents) for file in files if (documents := _loaded(file)) is not None]
    ours = [(file, documents) for file, documents in loaded if any(document.ours for document in documents)]
    right = [_judge(file, documents, volumes) for file, documents in ours]
    if not ours and len(loaded) == len(files):
        click.echo(f"{folder}: no file has a manifest of {GROUP}: write one, or name another folder", err=True)
    return bool(ours) and all(right) and len(loaded) == len(files)


def _is_right(file: Path, volumes: Path) -> bool:
    documents = _loaded(file)
    return documents is not None and _judge(file, documents, volumes)


def _loaded(file: Path) -> list[Document] | None:
    """Return the documents of a file; None, after saying why, if it can't be read."""
    try:
        return load(file)
    except ManifestError as error:
        click.echo(error.message, err=True)
        return None


def _judge(file: Path, documents: list[Document], volumes: Path) -> bool:
    """Judge the manifests of ours in a file, and print what is to be said of them."""
    ours = [document for document in documents if document.ours]
    found = [(document, _find(document, volumes)) for document in ours]
    lines = [describe(file, document, problem) for document, finding in found for problem in finding.problems]
    notes = [describe(file, document, note) for document, finding in found for note in finding.notes]
    if not ours:
        lines.append(f"{file}: no manifest of {GROUP}: write one, or name another file")
    for line in [*lines, *notes]:
        click.echo(line, err=True)
    if not lines:
        others = len(documents) - len(ours)
        told = f"; {_count(others, 'other')} not judged" if others else ""
        click.echo(f"{file}: ok ({_count(len(ours), 'manifest')}{told})")
    return not lines


def _find(document: Document, volumes: Path) -> Findings:
    """Return the verdict on a manifest; of a right one what is to be said beyond that, by its kind."""
    if problems := document.problems():
        return Findings(problems)
    manifest = settle(document.content)
    if manifest["kind"] == ABLATION:
        return _find_variants(manifest)
    if manifest["kind"] == TRAINING:
        spec = ArcticTrainingSpec.model_validate(manifest["spec"])
        return look_at_data(spec, local_mounts(spec.template, volumes))
    return Findings([])


def _find_variants(manifest: dict[str, Any]) -> Findings:
    """Return why a variant of an ablation can't be trained or judged: the operator and `arctic ablate` refuse it."""
    from arctic_ablation.faults import fault

    spec = ArcticAblationSpec.model_validate(manifest["spec"])
    try:  # who installs the command alone has no NumPy, with which a swarm is drawn
        wrong = fault(study_of(manifest["metadata"]["name"], spec))
    except ModuleNotFoundError as error:
        return Findings([], [Problem("spec.mixture", _NOT_DRAWN.format(error.name))])
    return Findings([Problem("spec", wrong)] if wrong else [])


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
