"""Seconds of each phase of `make demo` and `make test`, with cold and with warm caches.

Cold means that the caches of this project, uv, pip and Go are empty (they are put into a scratch folder beside the
real one). Debian packages stay installed, and the registries' distance is part of the figure. What is cold of a demo or
a test is its set-up, so a cold `make test` takes `setup_s` and `test_s`. Nothing here is a ratio: these are the minutes
that a person waits.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from arctic_cluster import paths
from benchmarks.form import arguments, finish

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Run:
    """One run of a make target."""

    title: str
    seconds: float
    phases: dict[str, float]


def run_target(title: str, target: str, environment: dict[str, str], scratch: Path) -> Run:
    """Run `make TARGET`; its output goes to standard error, so that the figures stay alone on standard output."""
    notes = scratch / f"{title.replace(' ', '-')}.jsonl"
    start = time.monotonic()
    subprocess.run(
        ["make", "--no-print-directory", target],
        cwd=ROOT,
        env={**os.environ, **environment, "ARCTIC_PHASES": str(notes)},
        stdout=sys.stderr,
        check=True,
    )
    lines = notes.read_text().splitlines() if notes.exists() else []
    phases = {note["phase"]: note["seconds"] for note in map(json.loads, lines)}
    return Run(title, time.monotonic() - start, phases)


def stop() -> None:
    """End the demo's cluster and no other one, which `make clean` would."""
    arctic = Path(sys.executable).with_name("arctic")
    subprocess.run([arctic, "cluster", "down"], stdout=sys.stderr, check=True)


def cold_caches(scratch: Path) -> dict[str, str]:
    """Return the variables that give every tool an empty cache."""
    cache = scratch / "cache"
    return {
        "XDG_CACHE_HOME": str(cache),
        "UV_CACHE_DIR": str(cache / "uv"),
        "UV_PROJECT_ENVIRONMENT": str(cache / "venv"),
        "GOCACHE": str(cache / "go-build"),
        "GOMODCACHE": str(cache / "go-modules"),
        "PIP_NO_CACHE_DIR": "1",
    }


def measure(*, quick: bool) -> list[Run]:
    """Run the targets one after the other; the demo's cluster is stopped before and after."""
    # Not in /tmp, which may be small or memory: a cold set-up fills as much as the real one.
    beside = paths.cache().parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="arctic-benchmark-", dir=beside) as folder:
        scratch = Path(folder)
        runs = []
        stop()
        if not quick:
            cold = {**cold_caches(scratch), "XDG_DATA_HOME": str(scratch / "data-cold")}
            runs.append(run_target("setup, cold", "setup", cold, scratch))
            runs.append(run_target("demo, after a cold set-up", "demo", cold, scratch))
            stop()
        warm = {"XDG_DATA_HOME": str(scratch / "data")}
        runs.append(run_target("demo, warm", "demo", warm, scratch))
        runs.append(run_target("demo, again", "demo", warm, scratch))
        stop()
        if not quick:
            runs.append(run_target("test, warm", "test", {}, scratch))
        return runs


def main() -> None:
    """Print the table and the figures."""
    told = arguments(__doc__, "warm caches only, without the tests")
    runs = measure(quick=told.quick)
    for run in runs:
        print(f"{run.title:36} {run.seconds:8.1f} s")
        for phase, seconds in run.phases.items():
            print(f"    {phase:32} {seconds:8.1f} s")
    keys = {
        "setup, cold": "setup_s",
        "demo, after a cold set-up": "demo_s",
        "demo, warm": "demo_warm_s",
        "demo, again": "demo_again_s",
        "test, warm": "test_s",
    }
    finish(told, {keys[run.title]: run.seconds for run in runs}, less_is_better=keys.values())


if __name__ == "__main__":
    main()
