"""How far a run is, as it is reported, and kept in checkpoints: the stages' tokens, times and held-out losses."""

from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from arctic_api.world import CheckpointReport, SourceReport, StageReport
from arctic_rpc.control_pb2 import CheckpointState, SourceState, StageState
from arctic_workers.training.curriculum import Curriculum, StagePlan


def now() -> str:
    """Return the time in RFC 3339, as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Progress:
    """The report of each stage that has begun."""

    def __init__(self, curriculum: Curriculum, kept: dict[str, Any] | None = None) -> None:
        """Begin, or go on from what `to_json` gave to a checkpoint."""
        self._curriculum = curriculum
        self._stages = {name: StageReport.model_validate(entry) for name, entry in (kept or {}).items()}

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {name: report.wire() for name, report in self._stages.items()}

    def begin(self, stage: StagePlan, loss: float | None) -> None:
        """Note that a stage has begun, and its held-out loss before it."""
        self._stages[stage.name] = StageReport(
            name=stage.name, tokens=0, start_time=now(), initial_validation_loss=loss
        )

    def end(self, stage: StagePlan, loss: float | None, checkpoint: str) -> None:
        """Note that a stage is done, its held-out loss, and the checkpoint that is taken of it now."""
        self._stages[stage.name] = self._stages[stage.name].model_copy(
            update={"completion_time": now(), "validation_loss": loss, "checkpoint": checkpoint}
        )

    def reports(self, step: int) -> list[StageReport]:
        """Return the stages that have begun, after `step` steps of the run."""
        return [
            self._stages[stage.name].model_copy(update={"tokens": stage.tokens_done(step)})
            for stage in self._curriculum.stages
            if stage.name in self._stages
        ]


def stage_state(report: StageReport) -> StageState:
    """Return a stage's report in the words of the control protocol."""
    return StageState(
        name=report.name,
        tokens=report.tokens,
        start_time=_timestamp(report.start_time),
        completion_time=_timestamp(report.completion_time),
        checkpoint=report.checkpoint or "",
        validation_loss=report.validation_loss,
        initial_validation_loss=report.initial_validation_loss,
    )


def source_state(report: SourceReport) -> SourceState:
    """Return a source's report in the words of the control protocol."""
    return SourceState(
        name=report.name,
        documents=report.documents,
        skipped=report.skipped,
        tokens=report.tokens,
        epochs=report.epochs,
        planned_epochs=report.planned_epochs,
        unused_splits=report.unused_splits,
    )


def checkpoint_state(report: CheckpointReport | None) -> CheckpointState | None:
    """Return a checkpoint's report in the words of the control protocol."""
    if report is None:
        return None
    return CheckpointState(step=report.step, tokens=report.tokens, uri=report.uri, time=_timestamp(report.time))


def _timestamp(text: str | None) -> Timestamp | None:
    if text is None:
        return None
    timestamp = Timestamp()
    timestamp.FromJsonString(text)
    return timestamp
