"""World documents for local processes, and what a local run concludes."""

import itertools
import json
import os
from pathlib import Path

import click
import pytest
from api_cases import INFERENCE, TRAINING, apply_changes
from click.testing import CliRunner

from arctic_api.world import ExitCode, InferenceGroup, Report, TrainingWorld
from arctic_cli import local
from arctic_cli.manifest import load, load_one
from arctic_workers.control.signals import StopFlag
from arctic_workers.training.data import survey

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def training() -> dict:
    return load_one(EXAMPLES / "tiny-training.yaml", "ArcticTraining")


@pytest.fixture
def inference() -> dict:
    return load_one(EXAMPLES / "tiny-inference.yaml", "ArcticInference")


def test_nodes_of_a_local_world_share_the_rendezvous_and_nothing_else(training: dict, tmp_path: Path) -> None:
    first, second = local.training_worlds(training, tmp_path, 1, tmp_path)
    assert first.ports.rendezvous == second.ports.rendezvous
    assert len({first.ports.control, first.ports.metrics, second.ports.control, second.ports.metrics}) == 4
    assert first.termination_message != second.termination_message


def test_nodes_of_a_local_world_claim_the_store_with_one_epoch(
    training: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local.time, "time", itertools.count(100).__next__)
    first, second = local.training_worlds(training, tmp_path, 1, tmp_path)
    assert first.epoch == second.epoch


def test_claims_are_folders_and_paths_of_the_manifest_lead_there(training: dict, tmp_path: Path) -> None:
    world = local.training_worlds(training, tmp_path, 1, tmp_path)[0]
    assert world.locate("/var/lib/arctic/corpus/general") == str(tmp_path / "arctic-corpus" / "general")
    assert world.locate("/elsewhere") == "/elsewhere"
    assert world.run_folder.startswith(str(tmp_path / "arctic-store" / "default" / "tiny-"))


def test_a_second_run_finds_the_folder_of_the_first(training: dict, tmp_path: Path) -> None:
    folders = {local.training_worlds(training, tmp_path, attempt, tmp_path)[0].run_folder for attempt in (1, 2)}
    assert len(folders) == 1


def test_a_world_survives_its_environment_variable(training: dict, tmp_path: Path) -> None:
    world = local.training_worlds(training, tmp_path, 1, tmp_path)[0]
    assert TrainingWorld.model_validate_json(world.model_dump_json(by_alias=True)) == world


def test_serving_what_was_never_trained_says_what_to_do(inference: dict, tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match="run `arctic train`"):
        local.inference_groups(inference, tmp_path, tmp_path)


def test_serving_finds_the_export_of_a_local_training(training: dict, inference: dict, tmp_path: Path) -> None:
    export = Path(local.training_worlds(training, tmp_path, 1, tmp_path)[0].run_folder) / "export"
    export.mkdir(parents=True)
    groups = local.inference_groups(inference, tmp_path, tmp_path)
    assert [group.model_folder for group in groups] == [str(export)] * 2


@pytest.mark.parametrize(
    ("codes", "exit_code"),
    [
        ([0, 0], ExitCode.DONE),
        ([64, 1], ExitCode.BAD_INPUT),
        ([75, 75], ExitCode.INTERRUPTED),
        ([75, 0], ExitCode.INTERRUPTED),
        ([-15, -15], ExitCode.INTERRUPTED),
    ],
)
def test_the_exit_code_of_a_run_is_the_gravest_of_its_nodes(codes: list[int], exit_code: int) -> None:
    assert local._conclude(codes, [None, None]) == exit_code


def test_a_refusal_reaches_the_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(outcome="refused", message="spec.data.sources[0].uri: no such folder")
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report.wire()))
    local._conclude([64], [local._read_report(path)])
    assert "refused: spec.data.sources[0].uri: no such folder" in capsys.readouterr().out


@pytest.fixture
def as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")


@pytest.mark.usefixtures("as_root")
def test_sources_that_are_missing_are_named_before_any_rank_starts_unless_the_run_has_their_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(local, "run_training", lambda *_: started.append(1) or 0)
    file = tmp_path / "manifest.yaml"
    file.write_text(json.dumps(apply_changes(TRAINING, {"spec.data.sources.0.uri": f"file://{tmp_path}/nowhere"})))
    command = ["-f", str(file), "--volumes", str(tmp_path)]
    result = CliRunner().invoke(local.train, command)
    assert (result.exit_code, started) == (64, [])
    assert "spec.data.sources[0]: source books: no text file" in result.stderr
    run = tmp_path / "store" / "default" / f"tiny-{local.local_uid('default', 'tiny')[:5]}"
    prepared = run / "data" / "books-0123456789abcdef"
    prepared.mkdir(parents=True)
    parts = {part: {"tokens": 400_000, "documents": 1} for part in ("train", "held-out")}
    (prepared / "index.json").write_text(json.dumps({"parts": parts, "source": {}}))
    result = CliRunner().invoke(local.train, command)
    assert result.exit_code == 0
    assert f"{file}: spec.data.sources[0]: source books has 400,000 tokens to train on, and the" in result.stderr
    assert "the curriculum reads them 2.50 times" in result.stderr
    assert started == [1]


def test_a_dry_run_says_what_is_read_and_what_it_takes_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "run_training", lambda *_: pytest.fail("started"))
    glances, glance = [], survey.glance
    monkeypatch.setattr(survey, "glance", lambda *asked: glances.append(asked) or glance(*asked))
    (tmp_path / "books.txt").write_text("x" * 400_000)
    file = tmp_path / "manifest.yaml"
    changes = {"spec.data.sources.0.uri": f"file://{tmp_path}/books.txt", "spec.pricePerGPUHour": "2.50"}
    changes["spec.expectedTokensPerSecond"] = 500
    file.write_text(json.dumps(apply_changes(TRAINING, changes)))
    command = ["-f", str(file), "--volumes", str(tmp_path / "volumes"), "--dry-run"]
    result = CliRunner().invoke(local.train, [*command, "--tokens-per-second", "1000"])
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["books", "1,000,000", "about", "99,000", "about", "10.10", "times"] in rows
    assert next(row for row in rows if row[:1] == ["general"])[1:3] == ["1,000,000", "245"]
    assert any(row[:2] == ["=", "all"] for row in rows)  # memory of a rank
    assert "At 1,000 tokens a second: 0.28 hours; 0.56 hours of devices, $1.39 at $2.50 an hour." in result.stdout
    assert len(glances) == 1  # each takes its time where a volume does not answer
    assert "At 500 tokens a second: 0.56 hours" in CliRunner().invoke(local.train, command).stdout
    assert not (tmp_path / "volumes").exists()


def test_a_run_as_root_makes_folders_that_pods_can_write_to(training: dict, tmp_path: Path) -> None:
    training["spec"]["checkpoint"]["volume"]["path"] = "team/a"
    local.training_worlds(training, tmp_path / "volumes", 1, tmp_path)
    claim = tmp_path / "volumes" / "arctic-store"
    for folder in (claim, claim / "team", claim / "team" / "a", claim / "team" / "a" / "default"):
        assert (folder.stat().st_uid, folder.stat().st_gid) == (65532, 65532)
    assert (tmp_path / "volumes").stat().st_uid == 0


@pytest.mark.usefixtures("as_root")
def test_a_run_as_root_leaves_the_namespaces_folder_to_the_stores_owner(training: dict, tmp_path: Path) -> None:
    store = tmp_path / "arctic-store"
    store.mkdir()
    os.chown(store, 1000, 1000)
    local.training_worlds(training, tmp_path, 1, tmp_path)
    assert (store.stat().st_uid, (store / "default").stat().st_uid) == (1000, 1000)


def test_what_a_run_writes_can_be_read_by_pods_whatever_the_umask(
    training: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "writes.py").write_text("import pathlib; pathlib.Path('export').mkdir()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = os.umask(0o077)
    try:
        worlds = local.training_worlds(training, tmp_path / "volumes", 1, tmp_path)[:1]
        assert local.Processes("writes", worlds, None).wait(0.0, StopFlag()) == [0]
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    for folder in ("volumes", "volumes/arctic-store", "volumes/arctic-store/default", "export"):
        assert (tmp_path / folder).stat().st_mode & 0o755 == 0o755, folder


def test_a_folder_of_weights_is_handed_on_as_a_path(inference: dict, tmp_path: Path) -> None:
    inference["spec"]["model"] = {"uri": "file:///weights"}
    assert local.inference_groups(inference, tmp_path, tmp_path)[0].model_folder == "/weights"


def test_a_folder_stands_for_the_secret_with_the_keys_and_must_have_some(inference: dict, tmp_path: Path) -> None:
    inference["spec"] |= {"model": {"uri": "file:///weights"}, "service": {"auth": {"secretName": "people"}}}
    with pytest.raises(click.ClickException, match="no API key in"):
        local.inference_groups(inference, tmp_path, tmp_path, tmp_path)
    (tmp_path / "people").mkdir()
    (tmp_path / "people" / "all").write_text("one\n")
    groups = local.inference_groups(inference, tmp_path, tmp_path, tmp_path)
    assert groups[0].keys_folder == str(tmp_path / "people")


@pytest.mark.parametrize(("command", "manifest"), [(local.train, TRAINING), (local.serve, INFERENCE)])
def test_what_is_suspended_is_not_run(command: click.Command, manifest: dict, tmp_path: Path) -> None:
    file = tmp_path / "manifest.yaml"
    file.write_text(json.dumps(apply_changes(manifest, {"spec.suspend": True})))
    result = CliRunner().invoke(command, ["-f", str(file), "--volumes", str(tmp_path)])
    assert result.exit_code == ExitCode.BAD_INPUT
    assert "spec.suspend: it is suspended: write false, or leave it out, to run it" in result.output


def test_a_service_that_was_ended_says_no_more_than_its_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended:
        """Processes of a group, of which one was refused."""

        def __init__(self, _module: str, groups: list[InferenceGroup], _template: object) -> None:
            reports = Report(outcome="succeeded"), Report(outcome="refused", message="no weights")
            for group, report in zip(groups, reports, strict=True):
                Path(group.termination_message).write_text(report.model_dump_json())

        def wait(self, *_: object) -> list[int]:
            return [0, ExitCode.BAD_INPUT]

    monkeypatch.setattr(local, "Processes", Ended)
    changes = {"spec.model": {"uri": "file:///weights"}, "spec.parallelism": {"pipeline": 2}}
    file = tmp_path / "manifest.yaml"
    file.write_text(json.dumps(apply_changes(INFERENCE, changes)))
    result = CliRunner().invoke(local.serve, ["-f", str(file), "--volumes", str(tmp_path)])
    assert (result.exit_code, result.stderr) == (ExitCode.BAD_INPUT, "refused: no weights\n")


def test_a_container_is_not_run_as_a_process(tmp_path: Path) -> None:
    result = CliRunner().invoke(local.serve, ["-f", str(EXAMPLES / "nim-inference.yaml"), "--volumes", str(tmp_path)])
    assert result.exit_code == ExitCode.BAD_INPUT
    assert "spec.engine.name: nim is a container of NVIDIA's, which needs a cluster: kubectl apply it" in result.output


def test_fields_that_mean_something_only_on_a_cluster_are_named() -> None:
    changes = {
        "spec.startDeadline": "1h",
        "spec.activeDeadline": "1h",
        "spec.image": "arctic:1",
        "spec.template": {"nodeSelector": {"gpu": "h100"}, "environment": []},
    }
    fields = ["spec.startDeadline", "spec.image", "spec.template.nodeSelector"]
    assert local.passed_over(apply_changes(TRAINING, changes)) == fields
    changes = {"spec.engine": {"image": "arctic:1"}, "spec.rollout": {"maxSurge": 2, "drainTimeout": "1m"}}
    assert local.passed_over(apply_changes(INFERENCE, changes | {"spec.replicas": 2})) == [
        "spec.engine.image",
        "spec.replicas",
        "spec.rollout.maxSurge",
    ]
    assert local.passed_over(apply_changes(INFERENCE, {"spec.replicas": 0})) == ["spec.replicas"]
    assert local.passed_over(apply_changes(INFERENCE, {"spec.replicas": 1})) == []


@pytest.mark.parametrize("name", ["tiny-training.yaml", "tiny-inference.yaml"])
def test_examples_mean_all_that_they_say(name: str) -> None:
    (document,) = load(EXAMPLES / name)
    assert local.passed_over(document.content) == []
