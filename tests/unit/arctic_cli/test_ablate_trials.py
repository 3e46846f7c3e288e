"""The trainings of an ablation as folders: what they have come to, and those of an earlier ablation."""

import json
import os
from collections import deque
from collections.abc import Container
from contextlib import AbstractContextManager
from pathlib import Path

import click
import pytest
from small_specs import TRAINING_SPEC

from arctic_ablation.study import Run, Step, VariantStudy
from arctic_ablation.variants import total_tokens
from arctic_api.ablation import ArcticAblationSpec, Objective
from arctic_api.world import Report, TrainingWorld
from arctic_cli.ablate import command, forks, running
from arctic_cli.ablate.trials import Shelf, read
from arctic_cli.local import run_folder_of
from arctic_workers.control.signals import StopFlag
from arctic_workers.training.milestones import CURVE

LOSS = Objective(perplexity={"general": 1})


def study(name: str, **fields) -> VariantStudy:
    grid = [{"field": "optimizer.weightDecay", "values": [0.0, 0.1]}]
    content = {"training": TRAINING_SPEC, "grid": grid, "objective": LOSS.wire()}
    return VariantStudy(name, ArcticAblationSpec.model_validate(content | fields))


def leave(volumes: Path, run: Run, *tokens: int) -> Path:
    """Leave what a training leaves that came so far."""
    folder = run_folder_of({"metadata": {"name": run.name}, "spec": run.training}, volumes)
    (folder / CURVE).parent.mkdir(parents=True)
    lines = [{"step": each // 8192, "tokens": each, "figures": {"perplexity/general": 9.0}} for each in tokens]
    (folder / CURVE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_what_a_training_wrote_again_after_a_fall_back_holds(tmp_path: Path) -> None:
    [run, _] = study("now").all_runs({})
    found = read(leave(tmp_path, run, 8192, 16_384, 24_576, 16_384), LOSS)
    assert [point.tokens for point in found.points] == [8192, 16_384]


def test_a_training_of_an_earlier_ablation_is_found_and_gone_on_with(tmp_path: Path) -> None:
    [first, second] = study("now").all_runs({})
    [earlier, _] = study("before").all_runs({})
    leave(tmp_path, earlier, 8192)
    shelf = Shelf(tmp_path, None, "now", "before", LOSS)
    found = shelf.found([first, second])
    assert (found[first.name].tokens, found[second.name].tokens) == (8192, 0)
    assert shelf.manifest(Step(first, 16_384))["metadata"]["name"] == earlier.name
    assert shelf.manifest(Step(second, 16_384))["metadata"]["name"] == second.name
    assert Shelf(tmp_path, None, "now", None, LOSS).found([first])[first.name].tokens == 0


def test_a_training_that_failed_says_why_from_then_on(tmp_path: Path) -> None:
    [run, _] = study("now").all_runs({})
    shelf = Shelf(tmp_path, None, "now", None, LOSS)
    shelf.fail(run, "the loss is nan")
    assert shelf.found([run])[run.name].failed == "the loss is nan"


class Trained(AbstractContextManager):
    """In place of trainings: they are over at once, and those that are named have no finite loss."""

    def __init__(self, diverged: Container[str]) -> None:
        self._diverged = diverged
        self._over: deque[tuple[str, Report]] = deque()

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, world: TrainingWorld, log: Path) -> None:
        tokens = total_tokens(world.spec.wire())
        figures = {} if world.name in self._diverged else {"perplexity/general": 9.0}
        folder = Path(world.run_folder)
        (folder / CURVE).parent.mkdir(parents=True)
        (folder / CURVE).write_text(json.dumps({"step": 1, "tokens": tokens, "figures": figures}) + "\n")
        self._over.append((world.name, Report(outcome="succeeded", tokens=tokens, evaluation=figures)))

    def ended(self, seconds: float) -> tuple[str, Report]:
        return self._over.popleft()


def test_a_training_that_has_a_loss_that_is_no_number_is_told_and_passed_over(tmp_path: Path, monkeypatch) -> None:
    two = study("now")
    [first, second] = two.all_runs({})
    monkeypatch.setattr(running, "Forks", lambda *_: Trained([first.name]))
    said: list[str] = []
    runner = running.Runner(two, two.spec, Shelf(tmp_path, None, "now", None, LOSS), tmp_path, said.append)
    assert runner.run(StopFlag()), "nothing is left"
    found = runner.found()
    assert [rank.variant for rank in two.ranks(found)] == [second.variant]
    assert f"{first.variant} (seed 0): not judged: it has no perplexity/general: lower the learning rate" in said[1]
    assert found[first.name].failed in said[1], "and so it is said from then on"


def test_where_no_training_has_a_loss_that_is_a_number_it_fails_with_a_sentence(tmp_path: Path, monkeypatch) -> None:
    two = study("now")
    monkeypatch.setattr(running, "Forks", lambda *_: Trained([run.name for run in two.all_runs({})]))
    monkeypatch.setattr(command, "stop_flag", StopFlag)
    manifest = {"metadata": {"name": "now"}, "spec": two.spec.wire()}
    with pytest.raises(click.ClickException, match=r"no training was judged: see above, and .*logs"):
        command._run(manifest, two.spec, two, tmp_path)


@pytest.mark.parametrize(("tokens", "suspended"), [(16_384, True), (1_000_000, False)])
def test_a_training_here_is_one_process_that_rests_where_it_is_told(
    tmp_path: Path, tokens: int, suspended: bool
) -> None:
    [run, _] = study("now").all_runs({})
    spec = Shelf(tmp_path, None, "now", None, LOSS).manifest(Step(run, tokens))["spec"]
    assert "parallelism" in run.training
    assert "parallelism" not in spec
    assert ("suspendAt" in spec) is suspended


def test_when_the_process_that_starts_trainings_is_gone_its_log_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(forks, "MODULE", "no_such_module")
    with forks.Forks(1, tmp_path / "forks.log") as gone, pytest.raises(click.ClickException, match=r"see .*forks\.log"):
        gone.ended(30.0)
    assert "no_such_module" in (tmp_path / "forks.log").read_text()


def test_what_trainings_write_can_be_read_by_pods_whatever_the_umask(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "writes.py").write_text("import pathlib; pathlib.Path('export').mkdir()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(forks, "MODULE", "writes")
    before = os.umask(0o077)
    try:
        with forks.Forks(1, tmp_path / "forks.log") as over, pytest.raises(click.ClickException, match="has ended"):
            over.ended(60.0)
    finally:
        os.umask(before)
    assert (tmp_path / "export").stat().st_mode & 0o755 == 0o755
