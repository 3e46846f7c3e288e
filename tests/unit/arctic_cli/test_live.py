"""Commands on a training of this machine, over its real control server, and what they say where there is none."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_cases import TRAINING
from click.testing import CliRunner, Result

from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import CheckpointReport, Ports, TrainingWorld
from arctic_cli.main import main
from arctic_cli.running import announced
from arctic_rpc.control_pb2 import RUNNING, TrainingState, WorkerState
from arctic_workers.control.commands import Commands, NotNow
from arctic_workers.control.ports import free_ports
from arctic_workers.control.server import ControlServer
from arctic_workers.control.state import StateBoard


class Rank(Commands):
    """Keeps what it is told; it can't write a checkpoint a second time."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pause(self, timeout: float) -> None:
        self.told.append("pause")

    def resume(self, timeout: float) -> None:
        self.told.append("resume")

    def stop_after(self, stage: str, timeout: float) -> None:
        self.told.append(f"stop after {stage!r}")

    def checkpoint(self, timeout: float) -> CheckpointReport:
        if "checkpoint" in self.told:
            raise NotNow("The ranks are not on the line.")
        self.told.append("checkpoint")
        return CheckpointReport(step=5, tokens=500, uri="file:///c/5", time="2026-01-02T03:04:05Z")


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[Rank]:
    world = TrainingWorld(
        namespace="default",
        name="tiny",
        uid="uid",
        first_host="127.0.0.1",
        ports=Ports(control=0),
        tls_folder=None,
        spec=ArcticTrainingSpec.model_validate(TRAINING["spec"]),
        attempt=1,
        epoch=1,
        run_folder="/run",
    )
    board, rank = StateBoard(world), Rank()
    board.publish(WorkerState(phase=RUNNING, training=TrainingState(stage="general")))
    with ControlServer(world, board, rank, ready=lambda: True) as server:
        here = world.model_copy(update={"ports": Ports(control=server.port)})
        with announced(tmp_path, here):
            yield rank


def arctic(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_a_training_of_this_machine_hears_each_command(rank: Rank, tmp_path: Path) -> None:
    local = ("tiny", "--local", "--volumes", str(tmp_path))
    said = [
        arctic(*command, *local).output
        for command in (["pause"], ["resume"], ["checkpoint"], ["stop"], ["stop", "--after", "b"], ["stop", "--cancel"])
    ]
    assert rank.told == ["pause", "resume", "checkpoint", "stop after 'general'", "stop after 'b'", "stop after ''"]
    assert said == [
        "tiny: paused\n",
        "tiny: goes on\n",
        "tiny: the checkpoint of step 5 is committed: file:///c/5\n",
        "tiny: ends with stage general\n",
        "tiny: ends with stage b\n",
        "tiny: trains all stages\n",
    ]
    refused = arctic("checkpoint", *local)
    assert (refused.exit_code, refused.output) == (1, "Error: tiny: The ranks are not on the line.\n")


def test_a_training_that_does_not_run_here_is_named_with_what_to_do(rank: Rank, tmp_path: Path) -> None:
    missing = arctic("pause", "other", "--local", "--volumes", str(tmp_path))
    assert missing.exit_code == 1
    assert "no training 'other' of namespace 'default' runs here" in missing.output


@pytest.mark.parametrize("command", [["pause"], ["resume"], ["stop"], ["checkpoint"]])
def test_a_training_that_has_ended_is_told_nothing(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    class Ended:
        """A cluster whose training has ended; it can't be written to."""

        def __init__(self, *_: object) -> None:
            pass

        def get(self, *_: str) -> dict[str, Any]:
            return {"status": {"state": "Succeeded", "stage": "b", "completionTime": "2026-01-02T03:04:05Z"}}

    monkeypatch.setattr("arctic_cli.live.OnCluster", Ended)
    said = arctic(*command, "tiny")
    assert said.exit_code == 1
    assert "the training ended at 2026-01-02T03:04:05Z (Succeeded)" in said.output


def test_without_a_cluster_the_sentence_says_how_to_name_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    nowhere = arctic("pause", "tiny")
    assert nowhere.exit_code == 1
    assert "set KUBECONFIG, or add --local" in nowhere.output


def test_a_training_that_does_not_listen_is_said_to_start_or_to_have_ended(tmp_path: Path) -> None:
    [port] = free_ports(1)
    left = tmp_path / ".running" / "default" / "tiny.json"
    left.parent.mkdir(parents=True)
    left.write_text(json.dumps({"control": port}))
    told = arctic("pause", "tiny", "--local", "--volumes", str(tmp_path))
    assert told.exit_code == 1
    assert told.output == "Error: tiny: its first pod does not answer: it is starting still, or has ended\n"
