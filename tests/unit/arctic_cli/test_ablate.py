"""`arctic ablate`, with real trainings: all of them share one start of torch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ablation_by_suites import BETTER, by_suites
from click.testing import CliRunner
from training_faults import small_training

from arctic_api.verdict import verdict
from arctic_api.world import ExitCode
from arctic_cli.main import main
from arctic_cli.running import alone

pytestmark = pytest.mark.processes

STEP, STEPS = 256, 8


def ablation(corpus: Path, **spec: Any) -> dict[str, Any]:
    training = small_training(corpus, "text", STEPS, 1000, tokens_per_step=STEP)["spec"]
    for field in ("parallelism", "restart", "template"):
        del training[field]
    training["batch"]["microBatchSize"] = 8
    for source in training["data"]["sources"]:
        source["uri"] = f"file://{corpus}/text/{source['name']}"
    return {
        "apiVersion": "arctic.dev/v1alpha1",
        "kind": "ArcticAblation",
        "metadata": {"name": "rates"},
        "spec": {
            "training": training | {"data": training["data"] | {"validation": {"fraction": 0.1}}},
            "grid": [{"field": "curriculum.stages.first.learningRate.peak", "values": [1e-5, 2e-5, 1e-2]}],
            "objective": {"perplexity": {"general": 1, "code": 1}},
            "halving": {"first": 2 * STEP, "factor": 3},
            **spec,
        },
    }


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "volumes").mkdir()
    return tmp_path


def write(place: Path, **spec: Any) -> list[str]:
    """Write the manifest, and return the arguments that run it."""
    file = place / "ablation.json"
    file.write_text(json.dumps(ablation(place / "corpus", **spec)))
    return ["ablate", "-f", str(file), "--volumes", str(place / "volumes")]


def test_the_best_goes_on_to_its_end_and_an_interrupted_ablation_goes_on(place: Path) -> None:
    command, scratch = [sys.executable, "-m", "arctic_cli", *write(place)], place / "scratch"
    scratch.mkdir()
    environment = os.environ | {"TMPDIR": str(scratch)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == ExitCode.INTERRUPTED
    assert not list(scratch.glob("arctic-ablate-*")), "it leaves nothing behind"
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    [folder] = place.glob("volumes/*/default/rates-?????")
    found = json.loads((folder / "results.json").read_text())
    assert found["ranking"][0]["variant"] == "peak=0.01"
    assert [rank["tokens"] for rank in found["ranking"]] == [STEP * STEPS, 2 * STEP, 2 * STEP]
    assert found["tokens"] == STEP * (STEPS + 2 * 2)
    assert verdict(found["best"]) == []
    assert "rates-best" in (folder / "best.yaml").read_text()
    assert not list(scratch.glob("arctic-*")), "it leaves nothing behind"
    journals = list(place.glob("volumes/*/default/rates-*/evaluation/curve.jsonl"))
    assert len(journals) == 3


def test_an_ablation_that_runs_here_is_not_started_beside_itself(place: Path) -> None:
    command = write(place)
    with alone(place / "volumes", "default", "rates"):
        refused = CliRunner().invoke(main, command)
    assert (refused.exit_code, f"process {os.getpid()} runs rates" in refused.output) == (1, True)
    assert not list(place.glob("volumes/*/default/rates-*")), "nothing was started"


def test_a_dry_run_says_what_it_takes_and_starts_nothing(place: Path) -> None:
    told = CliRunner().invoke(main, [*write(place), "--dry-run", "--tokens-per-second", "100"])
    assert told.exit_code == 0, told.output
    assert "3 variants with 1 seeds each: 3 trainings" in told.output
    assert "rungs at 512, 1,536, 2,048 tokens" in told.output
    assert "3,072 tokens of 6,144" in told.output
    assert not list(place.glob("volumes/*/default/rates-*"))


def test_a_variant_that_is_no_training_is_named(place: Path) -> None:
    grid = [{"field": "curriculum.stages.first.mixture", "values": [{"books": 1}, {"poems": 1}]}]
    told = CliRunner().invoke(main, write(place, grid=grid))
    assert told.exit_code == ExitCode.BAD_INPUT
    assert "variant mixture=poems:1: spec.curriculum.stages" in told.output


def test_a_path_that_leads_nowhere_is_named(place: Path) -> None:
    told = CliRunner().invoke(main, write(place, grid=[{"field": "curriculum.stages.third.tokens", "values": [1]}]))
    assert told.exit_code == ExitCode.BAD_INPUT
    assert "write one of first, second" in told.output


def test_gpu_hours_are_a_budget_on_a_cluster_alone(place: Path) -> None:
    told = CliRunner().invoke(main, write(place, budgetGPUHours=1))
    assert told.exit_code == ExitCode.BAD_INPUT
    assert "spec.budgetGPUHours: GPU hours are counted on a cluster alone: write budget, in tokens" in told.output


def test_suites_judge_trainings_at_their_end_and_what_follows_instructions_is_the_best(place: Path) -> None:
    text, file = place / "commas", place / "judged.json"
    file.write_text(json.dumps(by_suites(text, text)))
    command = ["ablate", "-f", str(file), "--volumes", str(place / "volumes")]
    told = CliRunner().invoke(main, command)
    assert told.exit_code == 0, told.output
    [folder] = place.glob("volumes/*/default/judged-?????")
    found = json.loads((folder / "results.json").read_text())
    ranks = [(rank["variant"], rank["objective"]) for rank in found["ranking"]]
    assert ranks == [(BETTER, 1.0), ("base", 0.0)]
    assert found["best"]["spec"]["evaluation"]["suites"] == ["ifeval"]
    (text / "ifeval.jsonl").unlink()
    assert CliRunner().invoke(main, command).exit_code == 0, "nothing is judged twice"
