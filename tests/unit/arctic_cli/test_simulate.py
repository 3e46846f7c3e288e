"""`arctic simulate`: from a manifest and a trace, or failures, to a table and to sentences about what is wrong."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from api_cases import INFERENCE, TRAINING, apply_changes
from click.testing import CliRunner, Result

from arctic_cli.main import main
from arctic_model.planning import serving_time, training_time
from arctic_model.planning.costs import Costs
from arctic_model.planning.devices import GIB, cpu
from arctic_simulator.requests import Arrival, write_trace

ROOT = Path(__file__).parents[3]
ARCTIC = ("-f", ROOT / "examples" / "arctic-inference.yaml", "--preset", "arctic")
TRAINED = ("-f", ROOT / "examples" / "arctic-training.yaml")


@pytest.fixture(autouse=True)
def machine_of_64_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "arctic_cli.plan.choice.this_machine", lambda: cpu(memory=64 * GIB, bandwidth=10e9, fp32_flops=1e11)
    )


def simulate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["simulate", *map(str, arguments)])


def trace(folder: Path, *arrivals: Arrival) -> Path:
    write_trace(folder / "trace.jsonl", arrivals)
    return folder / "trace.jsonl"


def row(result: Result, name: str) -> list[str]:
    [line] = [line for line in result.stdout.splitlines() if line.startswith(name)]
    return line.removeprefix(name).split()


def test_a_service_answers_its_trace(tmp_path: Path) -> None:
    result = simulate(*ARCTIC, "--requests", trace(tmp_path, *[Arrival(0.1 * n, 1000, 50) for n in range(40)]))
    assert result.exit_code == 0, result.output
    assert "40 requests, 2,000 tokens of answers" in result.stdout
    # Nobody waits, and a step of Arctic on 16 H100 takes milliseconds.
    assert row(result, "requests that wait when one comes")[-1] == "0.0"
    assert 0.5 < float(row(result, "ms between tokens")[0]) < 10


def test_ten_times_as_many_requests_wait_longer(tmp_path: Path) -> None:
    def p95(gap: float) -> float:
        result = simulate(*ARCTIC, "--requests", trace(tmp_path, *[Arrival(gap * n, 3000, 20) for n in range(60)]))
        return float(row(result, "ms until the first token")[1].replace(",", ""))

    assert p95(0.001) > 2 * p95(1.0)


def test_a_request_that_is_too_long_is_named(tmp_path: Path) -> None:
    result = simulate(*ARCTIC, "--requests", trace(tmp_path, Arrival(0.0, 10, 10), Arrival(1.0, 4000, 97)))
    assert result.exit_code == 64
    assert "line 2" in result.stderr
    assert "4096" in result.stderr


def test_a_service_needs_requests_and_a_group_that_fits(tmp_path: Path) -> None:
    assert "--requests is missing" in simulate(*ARCTIC).stderr
    manifest = tmp_path / "small.yaml"
    manifest.write_text(json.dumps(apply_changes(INFERENCE, {"spec.engine": {"name": "vllm"}})))
    file = trace(tmp_path, Arrival(0.0, 10, 10))
    result = simulate("-f", manifest, "--preset", "arctic", "--requests", file)
    assert "does not fit" in result.stderr


def test_a_training_loses_more_with_nodes_that_fail_more_often() -> None:
    def share(mtbf: str) -> float:
        result = simulate(*TRAINED, "--node-mtbf", mtbf, "--spares", 8, "--repair", "2h")
        assert result.exit_code == 0, result.output
        return float(row(result, "share of the time that counts")[0].rstrip("%"))

    assert share("2000h") < share("100000h") <= 100


@pytest.mark.parametrize("option", ["--node-mtbf", "--checkpoint-stop"])
def test_what_takes_no_time_at_all_is_refused(option: str) -> None:
    """Nodes that fail all the time, and checkpoints that had better come all the time."""
    result = simulate(*TRAINED, option, "0s")
    assert result.exit_code == 2
    assert option in result.stderr
    assert "write more, such as 1s" in result.stderr


def test_no_checkpoint_comes_within_a_step(tmp_path: Path) -> None:
    manifest = tmp_path / "training.yaml"
    manifest.write_text(json.dumps(apply_changes(TRAINING, {"spec.checkpoint.every": {"interval": "1ms"}})))
    result = simulate("-f", manifest, "--checkpoint-stop", "1ms")
    assert result.exit_code == 0, result.output
    assert float(row(result, "share of the time that counts")[0].rstrip("%")) > 90


def test_a_training_that_would_never_get_to_a_checkpoint_is_told_what_to_write(tmp_path: Path) -> None:
    def told(interval: str) -> Result:
        manifest = tmp_path / "training.json"
        manifest.write_text(json.dumps(apply_changes(TRAINING, {"spec.checkpoint.every": {"interval": interval}})))
        return simulate(
            "-f", manifest, "--node-mtbf", "1m", "--repair", "0s", "--restart", "5s", "--checkpoint-stop", "1s"
        )

    refused = told("30m")
    assert refused.exit_code == 64
    assert "of 2 nodes one fails every 30 s: it would hardly get to one; write an interval of about 7" in refused.stderr
    assert told("7s").exit_code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--node-mtbf", "1h"], "one fails every 28 s, and a restart takes 5.0 minutes: no interval of checkpoints"),
        (["--checkpoint-stop", "100h"], "a checkpoint comes every 30.0 minutes and stops the steps for 4.2 days"),
        (["--checkpoint-stop", "99999h"], "a checkpoint comes every 30.0 minutes and stops the steps for 4,166.6 days"),
    ],
    ids=["a restart never ends", "checkpoints take all the time", "one checkpoint takes longer than all steps"],
)
def test_what_makes_a_training_hopeless_is_named(options: list[str], words: str) -> None:
    result = simulate(*TRAINED, *options)
    assert result.exit_code == 64
    assert words in result.stderr


def test_no_checkpoint_comes_later_than_the_end(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(json.dumps(TRAINING))
    result = simulate("-f", tmp_path / "training.json", "--node-mtbf", "5000h", "--checkpoint-stop", "50ms")
    assert result.exit_code == 0, result.output
    [taken] = [line for line in result.stdout.splitlines() if "one of which fails" in line]
    assert f"steps take {' '.join(row(result, 'a checkpoint every')[2:])} at" in taken


def test_a_curriculum_of_no_tokens_has_nothing_to_simulate(tmp_path: Path) -> None:
    stages = [{**stage, "tokens": 0} for stage in TRAINING["spec"]["curriculum"]["stages"]]
    manifest = tmp_path / "training.json"
    manifest.write_text(json.dumps(apply_changes(TRAINING, {"spec.curriculum.stages": stages})))
    result = simulate("-f", manifest)
    assert (result.exit_code, result.stderr) == (
        64,
        f"Error: {manifest}: spec.curriculum.stages: no stage has tokens\n",
    )


def test_a_duration_that_is_none_is_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "training.yaml"
    manifest.write_text(json.dumps(TRAINING))
    assert "is not a duration" in simulate("-f", manifest, "--repair", "a while").stderr


def test_a_service_of_this_machine_takes_what_its_costs_say(tmp_path: Path) -> None:
    manifest = tmp_path / "small.yaml"
    manifest.write_text(json.dumps(apply_changes(INFERENCE, {"spec.engine": {"name": "native"}})))
    costs = replace(serving_time.TYPICAL, steps=0.25)
    Costs(training_time.TYPICAL, costs).write(tmp_path / "costs.json")
    arguments = ("-f", manifest, "--preset", "arctic-tiny", "--requests", trace(tmp_path, Arrival(0.0, 10, 3)))
    bound = simulate(*arguments)
    predicted = simulate(*arguments, "--costs", tmp_path / "costs.json")
    assert "the least" in bound.stdout
    assert float(row(bound, "ms between tokens")[0]) < 10
    assert "measured here" in predicted.stdout
    assert float(row(predicted, "ms between tokens")[0]) == pytest.approx(250, abs=10)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("arctic_cli.simulate.serving", "arctic_simulator.serving"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "simpy", None)
    result = simulate(*TRAINED)
    assert result.exit_code == 1
    assert "install arctic-kubernetes[planning]" in result.stderr
