"""MLflow and Weights & Biases (`spec.tracking`): a run's figures, sent beside the training. No torch.

They are sent from a thread, and lost when what they are sent to is away: training waits for nobody who only looks on.
"""

import importlib
import importlib.util
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from arctic_api.training import Mlflow, Tracking, WeightsAndBiases
from arctic_api.uris import path_of
from arctic_api.world import TrainingWorld
from arctic_workers.training.errors import Refused

log = logging.getLogger(__name__)

MOST_WAITING = 1000
"""Entries that wait to be sent: beyond that they are dropped."""
CLOSE_SECONDS = 30.0
"""Longest wait at the end for all that still waits to be sent."""
CLOSE_SHARE = 0.1
"""Part of a pod's grace period that this wait takes at most: a pod that is stopped has to write its checkpoint too."""
_Send = Callable[[int, Mapping[str, float]], None]
_Opened = tuple[_Send, Callable[[], None]]


def check_installed(tracking: Tracking | None) -> None:
    """Refuse to train where what `spec.tracking` names is not installed: on all ranks alike, which have one image."""
    wanted = {"mlflow": tracking and tracking.mlflow, "wandb": tracking and tracking.wandb}
    for package, asked in wanted.items():
        if asked and importlib.util.find_spec(package) is None:
            raise Refused(
                "TrackerMissing",
                f"tracking.{package}: the workers' environment has no {package}: use an image with "
                f"arctic-kubernetes[{package}], or leave it out",
            )


def open_trackers(world: TrainingWorld, folder: Path) -> "list[Tracker]":
    """Return what the figures of a run are sent to; the run's folder is where offline ones write."""
    tracking = world.spec.tracking
    trackers = []
    if tracking and (mlflow := tracking.mlflow):
        trackers.append(Tracker("mlflow", lambda: _open_mlflow(mlflow, world)))
    if tracking and (wandb := tracking.wandb):
        trackers.append(Tracker("wandb", lambda: _open_wandb(wandb, world, folder)))
    return trackers


def close_trackers(trackers: "Sequence[Tracker]", grace: float) -> None:
    """Let trackers send what waits, and end, in a part of the seconds that a pod has once it is told to go."""
    for tracker in trackers:
        tracker.close(min(CLOSE_SECONDS, CLOSE_SHARE * grace) / len(trackers))


class Tracker:
    """Sends entries in the background, in their order."""

    def __init__(self, name: str, open_: Callable[[], _Opened]) -> None:
        """Open it in the background too: `open_` returns what sends a step's figures, and what ends it."""
        self._name = name
        self._open = open_
        self._entries: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Send the figures of a step, some time; never waits."""
        try:
            self._entries.put_nowait((step, figures))
        except queue.Full:
            log.warning("%s takes no more figures: those of step %d are lost to it", self._name, step)

    def close(self, within: float = CLOSE_SECONDS) -> None:
        """Send what waits, for so many seconds, and end."""
        deadline = time.monotonic() + within
        try:
            self._entries.put(None, timeout=within)
        except queue.Full:
            return
        self._thread.join(deadline - time.monotonic())

    def _run(self) -> None:
        try:
            send, end = self._open()
        except Exception:
            log.exception("%s could not be opened: the figures of this attempt are not sent there", self._name)
            send, end = (lambda *_: None), (lambda: None)
        while (entry := self._entries.get()) is not None:
            self._attempt(lambda entry=entry: send(*entry))  # type: ignore[misc]
        self._attempt(end)

    def _attempt(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            log.warning("figures are lost to %s: %s", self._name, error)


def _as_mlflow_reads(uri: str, world: TrainingWorld) -> str:
    """Return an address for MLflow, which ends a path at `?` and `#` that are not quoted."""
    place = path_of(uri)
    return uri if place == uri else Path(world.locate(place)).absolute().as_uri()


def _open_mlflow(spec: Mlflow, world: TrainingWorld) -> _Opened:
    """Make a run of the attempt in MLflow, under the training's name."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # without a server there is no other place that pods share
    mlflow: Any = importlib.import_module("mlflow")
    entities: Any = importlib.import_module("mlflow.entities")
    client = mlflow.MlflowClient(_as_mlflow_reads(spec.uri, world))
    name = spec.experiment or world.name
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else client.create_experiment(name)
    tags = {"arctic.namespace": world.namespace, "arctic.name": world.name, "arctic.uid": world.uid}
    run = client.create_run(number, tags=tags, run_name=f"{world.name} {world.epoch}").info.run_id

    def send(step: int, figures: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        client.log_batch(run, [entities.Metric(key, value, now, step) for key, value in figures.items()])

    return send, lambda: client.set_terminated(run)


def _open_wandb(spec: WeightsAndBiases, world: TrainingWorld, folder: Path) -> _Opened:
    """Begin a run of the attempt in Weights & Biases, grouped by the training."""
    wandb: Any = importlib.import_module("wandb")
    run = wandb.init(
        project=spec.project,
        entity=spec.entity,
        mode=spec.mode,
        dir=str(folder),
        name=f"{world.name} {world.epoch}",
        group=f"{world.namespace}/{world.name}",
        config=world.spec.wire(),
        settings=wandb.Settings(console="off", disable_git=True),
    )
    return (lambda step, figures: run.log(dict(figures), step=step)), run.finish
