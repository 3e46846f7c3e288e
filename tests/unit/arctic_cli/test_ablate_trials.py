"""The trainings of an ablation as folders: what they have come to, and those of an earlier ablation."""

import json
from pathlib import Path

import click
import pytest
from small_specs import TRAINING_SPEC

from arctic_ablation.study import Run, Step, VariantStudy
from arctic_api.ablation import ArcticAblationSpec, Objective
from arctic_cli.ablate import forks
from arctic_cli.ablate.trials import Shelf, read
from arctic_cli.local import run_folder_of
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
