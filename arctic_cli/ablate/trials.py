"""The trainings of an ablation on this machine: their manifests, their folders, and what they have come to."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from arctic_ablation.study import Found, Run, Step
from arctic_ablation.variants import Wire, training_manifest
from arctic_cli.local import run_folder_of
from arctic_workers.ablation.curve import read_curve
from arctic_workers.training.files import write_json

FAILED = "ablation-failed.json"
"""In a training's folder: why it goes no further. Removed, it is tried again."""


@dataclass(frozen=True)
class Shelf:
    """Where trainings are kept.

    Args:
        volumes: folder of the claims.
        namespace: of the ablation.
        earlier: names of the ablation and of the one whose trainings it reuses: a training of either is the same.
    """

    volumes: Path
    namespace: str | None
    name: str
    reuse: str | None

    def folder(self, run: Run) -> Path:
        """Return the folder of a training, which need not be there; of an earlier one if that has come further."""
        return max(self._folders(run), key=lambda folder: _tokens(folder))

    def _folders(self, run: Run) -> list[Path]:
        names = [run.name]
        if self.reuse is not None:
            names.append(self.reuse + run.name.removeprefix(self.name))
        return [run_folder_of(self._manifest(name, run.training), self.volumes) for name in names]

    def _manifest(self, name: str, specification: Wire) -> Wire:
        made = training_manifest(name, specification)
        if self.namespace is not None:
            made["metadata"]["namespace"] = self.namespace
        return made

    def name_here(self, run: Run) -> str:
        """Return the name under which a training goes on: an earlier ablation's if that has come further."""
        own, *others = self._folders(run)
        reused = bool(others) and _tokens(others[0]) > _tokens(own)
        return (self.reuse or "") + run.name.removeprefix(self.name) if reused else run.name

    def manifest(self, step: Step) -> Wire:
        """Return the manifest by which a training goes as far as it may now."""
        # One process each: the same steps from the same tokens, whatever the ranks that a cluster shares them out over.
        here = {name: value for name, value in step.specification.items() if name != "parallelism"}
        return self._manifest(self.name_here(step.run), here)

    def found(self, runs: Iterable[Run]) -> dict[str, Found]:
        """Return what is known of some trainings, by name."""
        return {run.name: read(self.folder(run)) for run in runs}

    def fail(self, run: Run, why: str) -> None:
        """Leave word that a training goes no further."""
        folder = self.folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FAILED, {"why": why})


def read(folder: Path) -> Found:
    """Return what a training's folder says."""
    failed = folder / FAILED
    return Found(read_curve(folder), json.loads(failed.read_text())["why"] if failed.exists() else "")


def _tokens(folder: Path) -> int:
    return read(folder).tokens
