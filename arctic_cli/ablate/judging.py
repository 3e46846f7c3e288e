"""Suites judge a training where it rests: `arctic evaluate` in a process of its own, beside other trainings."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from arctic_ablation.variants import data_of_suites
from arctic_api.ablation import ArcticAblationSpec
from arctic_api.uris import path_of
from arctic_api.world import Mount, locate
from arctic_workers.control import lifeline

_RESULTS = "results.json"


class Judging:
    """The evaluations that are under way.

    Args:
        spec: of the ablation.
        mounts: where its claims are on this machine.
    """

    def __init__(self, spec: ArcticAblationSpec, mounts: list[Mount]) -> None:
        self._suites = {str(one.name): locate(path_of(one.uri), mounts) for one in data_of_suites(spec)}
        self._running: dict[str, tuple[subprocess.Popen[bytes], Path, Path]] = {}

    @property
    def is_asked_for(self) -> bool:
        """Whether the objective is of suites."""
        return bool(self._suites)

    def start(self, name: str, model: str, folder: Path, log: Path) -> None:
        """Begin to evaluate a training, or go on; `model` is the URI of its checkpoint, or of what it exports."""
        suites = [word for suite, path in self._suites.items() for word in ("--suite", f"{suite}={path}")]
        arguments = ("evaluate", path_of(model), "--name", name, "-o", str(folder), *suites)
        with log.open("ab") as out:
            process = subprocess.Popen(
                (*lifeline.command("arctic_cli"), *arguments),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C reaches this process alone
            )
        self._running[name] = (process, folder, log)

    def ended(self) -> tuple[str, str] | None:
        """Return the name of a training that was judged, and why it could not be; None if none is done."""
        done = next((name for name, (process, _, _) in self._running.items() if process.poll() is not None), None)
        if done is None:
            return None
        process, folder, log = self._running.pop(done)
        if process.returncode:
            return done, f"its evaluation: {log.read_text(errors='replace').rstrip().rpartition(chr(10))[-1]}"
        told = _suites(folder)
        return done, "; ".join(f"{suite}: {told[suite]['why']}" for suite in self._suites if "why" in told[suite])

    def __enter__(self) -> "Judging":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what is under way: what was answered is kept."""
        for process, _, _ in self._running.values():
            process.terminate()
            process.wait()


def figures(folder: Path) -> Mapping[str, float]:
    """Return the own figure of each suite that an evaluation is done with; none before its end."""
    return {
        name: suite["figures"][suite["main figure"]]["value"]
        for name, suite in _suites(folder).items()
        if "main figure" in suite
    }


def _suites(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / _RESULTS
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(path.read_text())["suites"]
    return found
