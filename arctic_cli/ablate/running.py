"""Runs what a study wants next, as many trainings at a time as may be, until nothing is left or somebody stops it."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from arctic_ablation.study import Found, Step, Study, affordable
from arctic_api.ablation import ArcticAblationSpec
from arctic_api.common import parse_tokens
from arctic_api.world import SUSPENDED, Report
from arctic_cli.ablate.forks import Forks
from arctic_cli.ablate.trials import Shelf
from arctic_cli.local import training_worlds
from arctic_workers.control.signals import StopFlag

_LOOK_SECONDS = 0.2


class Runner:
    """An ablation on this machine.

    Args:
        study: what is to run.
        spec: of the ablation.
        shelf: where its trainings are kept.
        log: folder for the trainings' logs.
        say: is told each line about what happens.
    """

    def __init__(
        self, study: Study, spec: ArcticAblationSpec, shelf: Shelf, log: Path, say: Callable[[str], None] = click.echo
    ) -> None:
        self._study, self._spec, self._shelf, self._log, self._say = study, spec, shelf, log, say
        self._running: dict[str, Step] = {}
        self._short = False  # of budget

    def found(self) -> dict[str, Found]:
        """Return what is known of all trainings."""
        known: dict[str, Found] = {}
        while True:
            runs = self._study.all_runs(known)
            if all(run.name in known for run in runs):
                return known
            known = self._shelf.found(runs)

    def run(self, stop: StopFlag) -> bool:
        """Run to the end; returns whether nothing is left. Trainings under way are ended as they are by a stop."""
        forks = Forks(self._spec.parallelism, self._log / "forks.log")
        with tempfile.TemporaryDirectory(prefix="arctic-ablate-") as scratch, forks:
            return self._run(forks, Path(scratch), stop)

    def _run(self, forks: Forks, scratch: Path, stop: StopFlag) -> bool:
        found = self.found()
        while not stop.requested.is_set():
            self._start(forks, scratch, found)
            if not self._running:
                return not self._short
            ended = forks.ended(_LOOK_SECONDS)
            if ended is not None:
                self._end(*ended)
                found = self.found()
        return False

    def _start(self, forks: Forks, scratch: Path, found: Mapping[str, Found]) -> None:
        """Start what is wanted most and not under way, as far as there are places and tokens."""
        free = self._spec.parallelism - len(self._running)
        if free <= 0:
            return
        busy = {step.run.name for step in self._running.values()}
        wanted = [step for step in self._study.steps(found) if step.run.name not in busy][:free]
        budget = None if self._spec.budget is None else parse_tokens(self._spec.budget)
        spent = sum(each.tokens for each in found.values()) + sum(step.cost(found) for step in self._running.values())
        chosen = affordable(wanted, found, budget, spent)
        self._short = len(chosen) < len(wanted)
        for step in chosen:
            manifest = self._shelf.manifest(step)
            name = manifest["metadata"]["name"]
            [world] = training_worlds(manifest, self._shelf.volumes, 1, scratch)
            self._running[name] = step
            forks.start(world, self._log / f"{name}.log")

    def _end(self, name: str, report: Report) -> None:
        step = self._running.pop(name)
        what = f"{step.run.variant} (seed {step.run.seed})"
        if report.outcome == "succeeded" or report.reason == SUSPENDED:
            self._say(f"{what}: {report.tokens:,} tokens, {_figures(report)}")
            return
        self._say(f"{what}: {report.outcome}: {report.message}")
        self._shelf.fail(step.run, report.message or report.reason)


def _figures(report: Report) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in (report.evaluation or {}).items())
