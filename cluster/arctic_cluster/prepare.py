"""Everything that a cluster needs on the machine before it starts: packages, programs, image, Python environment."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from arctic_cluster import binaries, environment, image, requirements
from arctic_cluster.files import locked, prune, readable_by_all, texts
from arctic_cluster.paths import CLUSTERS, cache
from arctic_cluster.progress import Progress

# GiB: programs and image are 1, what Go keeps of compiling them 5, both as measured; the cluster itself takes 3 more.
_NEEDED_TO_BUILD = 9
_KEPT = 2


def build() -> None:
    """Install packages, build the programs and make the image, each unless it is there."""
    with _at_work():
        _build(further_steps=0)


def prepare(further_steps: int) -> tuple[Progress, Path]:
    """Build what is missing, and the environment of the sources as they are.

    Returns the progress, which has `further_steps` left, and the environment's folder.
    """
    with _at_work():
        progress = _build(further_steps + 1)
        with progress.step("Python environment of the pods"):
            folder = environment.prepare()
    return progress, folder


def prepare_engine(engine: str) -> Path:
    """Make the environment of an engine, one of `environment.ENGINES`; clusters that start later have it."""
    with _at_work():
        return environment.prepare_engine(engine)


@contextlib.contextmanager
def _at_work() -> Iterator[None]:
    """Hold the cache's lock, on a machine that has what is needed; what is made meanwhile, everybody can read."""
    requirements.check()
    with readable_by_all(), locked(cache() / "lock"):
        yield


def _build(further_steps: int) -> Progress:
    packages = requirements.missing_packages()
    programs = not binaries.folder().exists()
    base = not image.archive().exists()
    if programs or base:
        requirements.check_space(cache(), _NEEDED_TO_BUILD)
    progress = Progress(bool(packages) + programs * len(binaries.programs()) + base + further_steps)
    if packages:
        with progress.step(f"Debian packages {' '.join(packages)}"):
            requirements.install(packages)
    if programs:
        binaries.build(progress)
    if base:
        with progress.step("base image"):
            image.build()
    _prune()
    return progress


def _prune() -> None:
    """Remove programs and images of other versions but the last: another checkout may be at work, or a cluster run."""
    states = texts(CLUSTERS.glob("*/state.json"))
    for made in (binaries.folder(), image.archive().parent):
        os.utime(made)
        prune(made.parent.iterdir(), _KEPT, states)
