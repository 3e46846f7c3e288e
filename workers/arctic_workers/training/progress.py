"""How far a run is, as it is reported, and kept in checkpoints: the stages' tokens, times and held-out losses."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from arctic_api.common import parse_tokens
from arctic_api.world import CHECKPOINT_MISMATCH, CheckpointReport, SourceReport, StageReport
from arctic_rpc.control_pb2 import CheckpointState, SourceState, StageState
from arctic_workers.training.curriculum import Curriculum, StagePlan
from arctic_workers.training.data.streams import VERSION
from arctic_workers.training.errors import Refused


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


STREAMS = "streams"
"""Which version of the token streams and their windows a checkpoint has been trained on; at first nothing said so."""


def trained_with(seed: int, stages: Iterable[StagePlan], share: float = 1.0) -> dict[str, Any]:
    """Return what of a manifest may not change once these stages have begun, by field: it says which tokens came."""
    # The share of each source follows from all budgets, those of stages to come among them.
    fields: dict[str, Any] = {"seed": seed, STREAMS: VERSION, "data.simulatedTokens, as a share,": share}
    for stage in stages:
        if stage.spec.tokens_per_step is None:
            fields["batch.tokensPerStep"] = stage.tokens_per_step
        else:
            fields[f"curriculum.stages[{stage.index}].tokensPerStep"] = stage.tokens_per_step
        if stage.spec.final_mixture is not None:
            fields[f"curriculum.stages[{stage.index}].finalMixture"] = stage.final_weights
        fields |= {
            f"curriculum.stages[{stage.index}].{field}": value
            for field, value in (
                ("name", stage.name),
                ("tokens", parse_tokens(stage.spec.tokens)),
                ("mixture", stage.weights),
                ("sequenceLength", stage.spec.sequence_length),
            )
        }
    return fields


def check_same(kept: Mapping[str, Any], seed: int, curriculum: Curriculum, step: int) -> None:
    """Refuse a manifest under which the first `step` steps would have been others than they were.

    The budget of the stage under way may have become another one: no step that was made depends on it.

    Args:
        kept: what `trained_with` gave to the checkpoint of that step.
        seed, curriculum: the manifest's now.
        step: updates done.
    """
    fields = trained_with(seed, curriculum.stages, curriculum.share)
    budget = _open_budget(kept, curriculum, step)
    if kept and kept.get(STREAMS, 1) != VERSION:
        raise Refused(
            CHECKPOINT_MISMATCH,
            f"the checkpoint of step {step} was trained on sequences of version {kept.get(STREAMS, 1)}, and this "
            f"release cuts those of version {VERSION}: finish the run with the release that began it, or begin another "
            "training from its weights (model.from)",
        )
    for field, value in kept.items():
        if field != budget and fields.get(field) != value:
            raise Refused(
                CHECKPOINT_MISMATCH,
                f"the checkpoint of step {step} was trained with {field} {json.dumps(value)}, and the manifest says "
                f"{json.dumps(fields.get(field))}: what has been trained can't be changed; write the old value again, "
                "or make another training",
            )


def _open_budget(kept: Mapping[str, Any], curriculum: Curriculum, step: int) -> str | None:
    """Return the field of the budget that may change: of the stage under way, which neither budget ends before now."""
    begun = [stage for stage in curriculum.stages if f"curriculum.stages[{stage.index}].tokens" in kept]
    if not begun or begun[-1].spec.final_mixture is not None:  # what a ramp has drawn follows from its whole length
        return None
    stage, field = begun[-1], f"curriculum.stages[{begun[-1].index}].tokens"
    steps = math.ceil(kept[field] / stage.tokens_per_step)
    return field if stage.first_step <= step < min(stage.first_step + steps, stage.end_step) else None


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Add one JSON line to a log that several attempts write."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, json.dumps(entry).encode() + b"\n")
    finally:
        os.close(descriptor)


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
