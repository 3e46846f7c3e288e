"""What the sources of a training are like on this machine, said before its ranks start."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from arctic_api.training import ArcticTrainingSpec, Source
from arctic_api.uris import path_of
from arctic_api.verdict import Problem
from arctic_api.world import Mount, locate

if TYPE_CHECKING:
    from arctic_workers.training.data.survey import Glance


@dataclass(frozen=True)
class Supply:
    """Tokens of a source that is trained on."""

    field: str
    """Its place in the specification."""
    source: Source
    asked: float
    """By the curriculum."""
    there: float
    """To train on; 0 if that is not known."""
    most: float
    """As many as are there at the very most."""
    exact: bool
    """Whether they are counted; else they follow from the sizes of files, about."""

    @property
    def amount(self) -> str:
        """How many are there, for people; "" if that is not known."""
        return f"{self._about}{self.there:,.0f}" if self.there else ""

    @property
    def times(self) -> str:
        """How often the curriculum reads them, for people; "" if that is not known."""
        return f"{self._about}{self.asked / self.there:,.2f} times" if self.there else ""

    @property
    def _about(self) -> str:
        return "" if self.exact else "about "


@dataclass(frozen=True)
class Findings:
    """What is said of the sources of a training."""

    problems: list[Problem]
    """Why some can't be used."""
    notes: Sequence[Problem] = ()
    """What is worth a thought, and stops nothing."""
    supplies: Sequence[Supply] = ()
    """Of each source that is trained on what there is."""


def look_at_data(spec: ArcticTrainingSpec, mounts: list[Mount], run_folder: Path | None = None) -> Findings:
    """Return what a glance tells of a training's sources: what can't be read, and of what there is too little.

    Args:
        spec: of the training.
        mounts: where its claims are on this machine.
        run_folder: of the training if it is to run here, None where it is only judged: then a source is passed over
            that is in no claim here. What the run has prepared is not looked for where it came from.
    """
    from arctic_workers.training.data.survey import glance

    seen = [
        each
        for each in glance(spec, lambda path: locate(path, mounts))
        if run_folder is not None or _is_here(each.source.uri, mounts)
    ]
    missing = [each for each in seen if not _prepared(each, run_folder)]
    problems = [Problem(f"spec.{each.field}", each.refusal) for each in missing if each.refusal]
    notes = [Problem(f"spec.{each.field}", _LATE.format(each.source.name)) for each in missing if not each.in_time]
    supplies = list(_supplies(spec, seen, run_folder))
    for supply in supplies:
        if 0 < supply.there < supply.asked:
            (problems if _runs_dry(supply) else notes).append(Problem(f"spec.{supply.field}", _sentence(supply)))
    return Findings(problems, notes, supplies)


_TRAINED_ON = "data.sources"
_LATE = "source {} did not answer in time: whether it can be read is found out by the ranks"


def _supplies(spec: ArcticTrainingSpec, seen: Iterable["Glance"], run_folder: Path | None) -> Iterator[Supply]:
    """Yield what there is of each source that is trained on: its text once that is prepared, else by its files."""
    from arctic_workers.training.curriculum import source_share, source_weights

    asked = source_weights(spec)
    part = source_share(spec) * (1 - (spec.data.validation.fraction or 0.0))
    for each in seen:
        name = each.source.name
        if name not in asked or not each.field.startswith(_TRAINED_ON):
            continue
        if indices := _prepared(each, run_folder):
            from arctic_workers.training.data.streams import Prepared

            newest = max(indices, key=lambda file: file.stat().st_mtime)
            tokens = Prepared(name, "", newest.parent).content().tokens
            yield Supply(each.field, each.source, asked[name], tokens, tokens, exact=True)
        else:
            yield Supply(each.field, each.source, asked[name], each.tokens * part, each.most_tokens, exact=False)


def _prepared(seen: "Glance", run_folder: Path | None) -> list[Path]:
    """Return the indices of what a run has prepared of a source."""
    name = seen.source.name if seen.field.startswith(_TRAINED_ON) else f"validation.{seen.source.name}"
    if run_folder is None:
        return []
    from arctic_workers.training.data.streams import INDEX, folders_of

    return [folder / INDEX for folder in folders_of(name, run_folder) if (folder / INDEX).is_file()]


def _runs_dry(supply: Supply) -> bool:
    """Whether the ranks will certainly refuse to read a source again.

    Of what is prepared they count sequences, which are not judged here.
    """
    return supply.source.when_exhausted == "refuse" and not supply.exact and supply.asked > supply.most


def _sentence(supply: Supply) -> str:
    dry = supply.source.when_exhausted == "refuse"
    said = (
        f"source {supply.source.name} has {supply.amount} tokens to train on, and the curriculum reads them "
        f"{supply.times}"
    )
    return f"{said}: with whenExhausted: refuse the run ends before its first step" if dry else said


def _is_here(uri: str, mounts: list[Mount]) -> bool:
    """Return whether a source is in a claim that has a folder on this machine."""
    path = path_of(uri)
    return any(mount.resolve(path) is not None and Path(mount.path).is_dir() for mount in mounts)
