import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from arctic_api.training import ArcticTrainingSpec, Tokenizer
from arctic_api.world import TrainingWorld
from arctic_cli.main import main
from arctic_workers.training import record as module
from arctic_workers.training.checkpoint.store import CheckpointStore
from arctic_workers.training.data import tokenizer
from arctic_workers.training.data.streams import write_streams
from arctic_workers.training.record import differences, machine, newest_record, write_record

TEXTS = ["one text", "another text", "and one more"]
TOKENIZER = Tokenizer(uri="file:///tokenizer")


@pytest.fixture
def run(spec_of: Callable[..., ArcticTrainingSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run with a tokenizer and one source, which an attempt here has recorded."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / "run"
    (folder / "tokenizer").mkdir(parents=True)
    tokenizer.save(tokenizer.train(TEXTS, 300), folder / "tokenizer")
    source = folder / "data" / "books-0123"
    source.mkdir(parents=True)
    write_streams(source, tokenizer.TextEncoder(folder / "tokenizer"), TEXTS, 0.5)
    record(folder, spec_of([{"tokens": 100, "sequenceLength": 16}], 16), epoch=7)
    return folder


def record(folder: Path, spec: ArcticTrainingSpec, epoch: int, *machines: dict[str, Any]) -> None:
    world = TrainingWorld(
        namespace="ns", name="t", uid="u", first_host="h", spec=spec, attempt=2, epoch=epoch, run_folder=str(folder)
    )
    write_record(world, CheckpointStore(folder, epoch), machines or [machine(), machine()])


def reproduce(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["reproduce", *map(str, arguments)])


def test_where_nothing_differs_it_says_so_and_exits_with_0(run: Path) -> None:
    result = reproduce(run)
    assert (result.exit_code, result.output[:38]) == (0, "nothing differs from attempt 2, which "), result.output
    assert len(newest_record(run)["machines"]) == 1


def test_each_difference_is_a_line_with_both_values(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "data" / "books-0123" / "train.bin").write_text("damaged")
    (run / "tokenizer" / "tokenizer.json").unlink()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(module, "version", lambda library: "9" if library == "torch" else "1")
    result = reproduce(run)
    lines = {line.split(":")[0]: line for line in result.output.splitlines()}
    assert result.exit_code == 1
    assert {"streams.books-0123", "tokenizer", "machine.threads", "versions.torch"} <= lines.keys()
    assert lines["machine.threads"] == 'machine.threads: "1" made it, "3" is here'
    assert lines["tokenizer"].endswith('"missing" is here')
    assert lines["versions.torch"].endswith('"9" is here')
    assert lines["streams.books-0123"].endswith("its tokens are not as they were written")


def test_the_newest_attempts_record_counts_and_every_kind_of_machine_that_it_had(
    run: Path, spec_of: Callable[..., ArcticTrainingSpec]
) -> None:
    other = {**machine(), "processor": "another"}
    record(run, spec_of([{"tokens": 200, "sequenceLength": 16}], 16), 10, machine(), other, other)
    result = reproduce(run)
    assert result.exit_code == 1
    assert result.output == f'machine.processor: "another" made it, {json.dumps(machine()["processor"])} is here\n'


def test_a_manifest_is_compared_field_by_field(
    run: Path, tmp_path: Path, spec_of: Callable[..., ArcticTrainingSpec]
) -> None:
    record(run, spec_of([{"tokens": 100, "sequenceLength": 16}], 16).model_copy(update={"tokenizer": TOKENIZER}), 8)
    spec = newest_record(run)["manifest"]
    file = tmp_path / "training.json"
    manifest = {"apiVersion": "arctic.dev/v1alpha1", "kind": "ArcticTraining", "metadata": {"name": "t"}}
    manifest["spec"] = spec
    file.write_text(json.dumps(manifest))
    assert reproduce(run, "-f", file).exit_code == 0, reproduce(run, "-f", file).output
    pods = {"template": {"labels": {"team": "a"}}, "resources": {"limits": {"cpu": 2}}}
    file.write_text(json.dumps({**manifest, "spec": {**spec, **pods}}))
    assert reproduce(run, "-f", file).exit_code == 0, "a run is told nothing of its pods"
    file.write_text(json.dumps({**manifest, "spec": {**spec, "seed": 5}}))
    result = reproduce(run, "-f", file)
    assert (result.exit_code, result.output) == (1, "manifest.seed: 0 made it, 5 is here\n")


def test_a_folder_without_a_record_is_named(tmp_path: Path) -> None:
    result = reproduce(tmp_path)
    assert result.exit_code == 1
    assert f"{tmp_path} has no attempts/*/run.json: name the folder of a run" in result.output


def test_lists_and_missing_values_are_compared_as_they_are() -> None:
    assert differences({"a": [1, 2], "b": {"c": 1}}, {"a": [2], "b": {"c": 1, "d": None}, "e": 0}) == [
        "a: [1, 2] made it, [2] is here",
        "e: nothing made it, 0 is here",
    ]
