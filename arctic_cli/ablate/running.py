"""Runs what a study wants next, as many trainings at a time as may be, until nothing is left or somebody stops it."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from arctic_ablation.ranking import objective, why_unjudged
from arctic_ablation.study import Found, Run, Step, Study, affordable
from arctic_ablation.variants import trains_adapter
from arctic_api.ablation import ArcticAblationSpec
from arctic_api.common import parse_tokens
from arctic_api.world import SUSPENDED, Report
from arctic_cli.ablate.forks import Forks
from arctic_cli.ablate.judging import Judging
from arctic_cli.ablate.trials import Shelf
from arctic_cli.local import local_mounts, training_worlds
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
        self._running: dict[str, Step] = {}  # or being judged
        self._judging = Judging(spec, local_mounts(spec.training.template, shelf.volumes))
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
        with tempfile.TemporaryDirectory(prefix="arctic-ablate-") as scratch, forks, self._judging:
            return self._run(forks, Path(scratch), stop)

    def _run(self, forks: Forks, scratch: Path, stop: StopFlag) -> bool:
        found = self.found()
        while not stop.requested.is_set():
            self._start(forks, scratch, found)
            if not self._running:
                return not self._short
            if ended := forks.ended(_LOOK_SECONDS):
                self._end(*ended)
            if judged := self._judging.ended():
                self._judge(*judged)
            if ended or judged:
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
        run = self._running[name].run
        if report.outcome != "succeeded" and report.reason != SUSPENDED:
            self._fail(name, report.outcome, report.message or report.reason)
            return
        self._say(f"{_called(run)}: {report.tokens:,} tokens, {_figures(report)}")
        if self._judging.is_asked_for:
            folder = self._shelf.judgement(run, report.tokens)
            self._judging.start(name, _weights(run, report), folder, self._log / f"{name}.log")
        elif wrong := why_unjudged(self._spec.objective, report.evaluation or {}):
            self._fail(name, "not judged", wrong)
        else:
            del self._running[name]

    def _judge(self, name: str, wrong: str) -> None:
        if wrong:
            self._fail(name, "not judged", wrong)
            return
        run = self._running.pop(name).run
        point = self._shelf.found([run])[run.name].points[-1]
        self._say(f"{_called(run)}: {objective(self._spec.objective, point.figures):.4f}")

    def _fail(self, name: str, how: str, why: str) -> None:
        run = self._running.pop(name).run
        self._say(f"{_called(run)}: {how}: {why}")
        self._shelf.fail(run, why)


def _weights(run: Run, report: Report) -> str:
    """Return the URI of what suites judge."""
    if trains_adapter(run.training):
        assert report.export_uri is not None, "it has come to its end, and was told to export"
        return report.export_uri
    assert report.checkpoint is not None, "it has come to where it rests"
    return report.checkpoint.uri


def _called(run: Run) -> str:
    return f"{run.variant} (seed {run.seed})"


def _figures(report: Report) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in (report.evaluation or {}).items())
