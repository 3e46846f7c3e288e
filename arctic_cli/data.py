"""What the sources of a training are like on this machine, said before its ranks start."""

from collections.abc import Iterator
from pathlib import Path

from arctic_api.training import ArcticTrainingSpec
from arctic_api.verdict import Problem
from arctic_api.world import Mount, locate


def data_problems(spec: ArcticTrainingSpec, mounts: list[Mount], run_folder: Path | None = None) -> Iterator[Problem]:
    """Yield why sources of a training can't be used, as far as a glance tells.

    Args:
        spec: of the training.
        mounts: where its claims are on this machine.
        run_folder: of the training if it is to run here, None where it is only judged: then a source is passed over
            that is in no claim here. What the run has prepared is passed over too.
    """
    from arctic_workers.training.data.survey import glance

    for seen in glance(spec, lambda path: locate(path, mounts)):
        if run_folder is None and not _is_here(seen.source.uri, mounts):
            continue
        if run_folder is not None and any((run_folder / "data").glob(f"{seen.source.name}-*")):
            continue
        if seen.refusal:
            yield Problem(f"spec.{seen.field}", seen.refusal)


def _is_here(uri: str, mounts: list[Mount]) -> bool:
    """Return whether a source is in a claim that has a folder on this machine."""
    path = uri.removeprefix("file://")
    return any(mount.resolve(path) is not None and Path(mount.path).is_dir() for mount in mounts)
