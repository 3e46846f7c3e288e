"""Figures on their way to a tracker; those of MLflow and Weights & Biases where these are installed."""

import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from arctic_api.training import ArcticTrainingSpec, Tracking
from arctic_api.world import Mount, TrainingWorld
from arctic_workers.training import tracking as trackings
from arctic_workers.training.errors import Refused
from arctic_workers.training.tracking import Tracker, check_installed, close_trackers, open_trackers

SpecOf = Callable[..., ArcticTrainingSpec]


def world_of(spec_of: SpecOf, folder: Path, **tracking: Any) -> TrainingWorld:
    spec = spec_of([{"tokens": 16}], 16).model_copy(update={"tracking": Tracking.model_validate(tracking)})
    return TrainingWorld(
        namespace="n", name="t", uid="u", first_host="h", spec=spec, attempt=2, epoch=2, run_folder=str(folder)
    )


def test_figures_are_sent_in_order_and_one_that_can_not_be_is_lost_alone(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[int] = []

    def send(step: int, figures: Mapping[str, float]) -> None:
        if step == 2:
            raise OSError("the server is away")
        sent.append(step)

    ended = threading.Event()
    tracker = Tracker("somewhere", lambda: (send, ended.set))
    for step in (1, 2, 3):
        tracker.log(step, {"loss": 1.0})
    tracker.close()
    assert sent == [1, 3]
    assert ended.is_set()
    assert "figures are lost to somewhere: the server is away" in caplog.text


def test_training_does_not_wait_for_a_tracker_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackings, "MOST_WAITING", 2)
    hold, hangs = threading.Event(), threading.Event()

    def send(*_: object) -> None:
        hangs.set()
        hold.wait()

    tracker = Tracker("somewhere", lambda: (send, hold.wait))
    tracker.log(0, {})
    assert hangs.wait(60)
    for step in range(1, 5):
        tracker.log(step, {})
    tracker.close(0.01)
    hold.set()
    assert "those of step 4 are lost" in caplog.text


def test_trackers_that_hang_leave_a_stopping_pod_its_grace_period() -> None:
    hold = threading.Event()
    released = threading.Timer(20, hold.set)
    released.start()
    close_trackers([Tracker(name, lambda: (lambda *_: None, hold.wait)) for name in ("a", "b")], grace=1.0)
    assert not hold.is_set()
    released.cancel()
    hold.set()


def test_a_tracker_that_can_not_be_opened_is_named_and_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> Any:
        raise PermissionError("no such key")

    tracker = Tracker("somewhere", refuse)
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    assert "somewhere could not be opened" in caplog.text


def test_a_tracker_that_is_not_installed_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackings.importlib.util, "find_spec", lambda _: None)
    check_installed(None)
    check_installed(Tracking())
    with pytest.raises(Refused, match=r"tracking.wandb: the workers' environment has no wandb"):
        check_installed(Tracking.model_validate({"wandb": {"project": "p"}}))


def test_mlflow_keeps_a_run_an_attempt_in_a_folder(spec_of: SpecOf, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    world = world_of(spec_of, tmp_path, mlflow={"uri": f"file://{tmp_path}/runs"})
    (tracker,) = open_trackers(world, tmp_path)
    tracker.log(7, {"loss": 2.5, "loss_by_source/books": 3.0})
    tracker.close()
    client = mlflow.MlflowClient(f"file://{tmp_path}/runs")
    (run,) = client.search_runs([client.get_experiment_by_name("t").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.metrics["loss_by_source/books"]) == ("t 2", "FINISHED", 3.0)
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [7]


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("https://mlflow.example/a%20b?c#d", "https://mlflow.example/a%20b?c#d"),
        ("file:///runs/c#1", "file:///claim%20%232/c%231"),
        ("file:///runs/a%20b", "file:///claim%20%232/a%20b"),
        ("file:///elsewhere", "file:///elsewhere"),
    ],
)
def test_mlflow_is_told_of_a_folder_as_it_reads_uris(
    spec_of: SpecOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, told: str
) -> None:
    client, world = MagicMock(), world_of(spec_of, tmp_path, mlflow={"uri": uri})
    monkeypatch.setitem(sys.modules, "mlflow", client)
    monkeypatch.setitem(sys.modules, "mlflow.entities", client.entities)
    mounts = [Mount(mount_path="/runs", path="/claim #2")]
    for tracker in open_trackers(world.model_copy(update={"mounts": mounts}), tmp_path):
        tracker.close()
    client.MlflowClient.assert_called_once_with(told)


def test_weights_and_biases_writes_into_the_runs_folder_offline(spec_of: SpecOf, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    world = world_of(spec_of, tmp_path, wandb={"project": "p"})
    (tracker,) = open_trackers(world, tmp_path)
    tracker.log(7, {"loss": 2.5})
    tracker.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"loss" in file.read_bytes()
