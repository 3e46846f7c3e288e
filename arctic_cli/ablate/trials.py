"""The trainings of an ablation on this machine: their manifests, their folders, and what they have come to."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from arctic_ablation.ranking import is_judged
from arctic_ablation.study import Found, Point, Run, Step
from arctic_ablation.variants import Wire, training_manifest
from arctic_api.ablation import Objective
from arctic_cli.ablate.judging import figures
from arctic_cli.local import run_folder_of
from arctic_workers.ablation.curve import read_curve
from arctic_workers.training.files import write_json

FAILED = "ablation-failed.json"
"""In a training's folder: why it goes no further. Removed, it is tried again."""
JUDGEMENTS = "evaluation"
"""In a training's folder: one for each number of tokens at which suites have judged it."""


@dataclass(frozen=True)
class Shelf:
    """Where trainings are kept.

    Args:
        volumes: folder of the claims.
        namespace: of the ablation.
        name: of the ablation.
        reuse: name of the one whose trainings it reuses: a training of either is the same.
        objective: what they are judged by.
    """

    volumes: Path
    namespace: str | None
    name: str
    reuse: str | None
    objective: Objective

    def folder(self, run: Run) -> Path:
        """Return the folder of a training, which need not be there; of an earlier one if that has come further."""
        return max(self._folders(run), key=self._tokens)

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
        reused = bool(others) and self._tokens(others[0]) > self._tokens(own)
        return (self.reuse or "") + run.name.removeprefix(self.name) if reused else run.name

    def manifest(self, step: Step) -> Wire:
        """Return the manifest by which a training goes as far as it may now."""
        # One process each: the same steps from the same tokens, whatever the ranks that a cluster shares them out over.
        here = {name: value for name, value in step.specification.items() if name != "parallelism"}
        return self._manifest(self.name_here(step.run), here)

    def found(self, runs: Iterable[Run]) -> dict[str, Found]:
        """Return what is known of some trainings, by name."""
        return {run.name: read(self.folder(run), self.objective) for run in runs}

    def _tokens(self, folder: Path) -> int:
        return read(folder, self.objective).tokens

    def judgement(self, run: Run, tokens: int) -> Path:
        """Return the folder of the evaluation by which suites judge a training where it rests."""
        return _judgement(self.folder(run), tokens)

    def fail(self, run: Run, why: str) -> None:
        """Leave word that a training goes no further."""
        folder = self.folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FAILED, {"why": why})


def _judgement(folder: Path, tokens: int) -> Path:
    return folder / JUDGEMENTS / str(tokens)


def read(folder: Path, objective: Objective) -> Found:
    """Return what a training's folder says of where it was judged."""
    failed = folder / FAILED
    suites = ((each, figures(_judgement(folder, each.tokens))) for each in read_curve(folder))
    points = (Point(each.tokens, {**each.figures, **found}) for each, found in suites)
    judged = [point for point in points if is_judged(objective, point.figures)]
    return Found(judged, json.loads(failed.read_text())["why"] if failed.exists() else "")
