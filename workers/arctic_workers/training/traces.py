"""The trace of an attempt: its stages, and in them checkpoints, evaluations and the export. Never a step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from arctic_api import tracing
from arctic_api.tracing import Place, Span
from arctic_api.world import CheckpointReport, Report, TrainingWorld
from arctic_workers.control.traces import made_by_operator


def attempt_place(world: TrainingWorld) -> Place:
    """Return where the span of an attempt's run is; of local ones epochs alone tell them apart."""
    return Place.of(world.uid, str(world.epoch), "run")


def tell_attempt(world: TrainingWorld, report: Report, begun: float) -> None:
    """Record a run that is over, as the first pod's supervisor has seen it since the moment `begun`."""
    tracing.record(
        Span(
            "attempt",
            begun,
            time.monotonic(),
            under=made_by_operator(world),
            place=attempt_place(world),
            error=report.message if report.outcome in ("failed", "refused") else "",
            attributes={
                "arctic.attempt": world.attempt,
                "arctic.outcome": report.outcome,
                "arctic.reason": report.reason,
                "arctic.step": report.step,
                "arctic.tokens": report.tokens,
            },
        )
    )


@dataclass
class _Stage:
    name: str
    place: Place
    begun: float
    first_step: int


class Traces:
    """What rank 0 tells of an attempt."""

    def __init__(self, world: TrainingWorld) -> None:
        self._world = world
        self._stage: _Stage | None = None
        self._places: dict[str, Place] = {}
        """Of each stage, the last span: a run that goes back comes to a stage again."""

    def enter(self, stage: str, step: int) -> None:
        """Begin a stage, unless it is under way."""
        if self._stage is not None and self._stage.name != stage:
            self.leave(step, done=False)
        if self._stage is None:
            self._places[stage] = Place.drawn(self._world.uid)
            self._stage = _Stage(stage, self._places[stage], time.monotonic(), step)

    def leave(self, step: int, *, done: bool) -> None:
        """Record the stage under way, if there is one: as this attempt has seen it, which may be a part."""
        if self._stage is None:
            return
        stage, self._stage = self._stage, None
        tracing.record(
            Span(
                "stage",
                stage.begun,
                time.monotonic(),
                under=attempt_place(self._world),
                place=stage.place,
                attributes={
                    "arctic.stage": stage.name,
                    "arctic.stage.done": done,
                    "arctic.stage.steps": step - stage.first_step,
                    "arctic.step": step,
                },
            )
        )

    def checkpoint(self, report: CheckpointReport, stage: str, begun: float) -> None:
        """Record a checkpoint that is committed now; from any thread."""
        tracing.record(
            Span(
                "checkpoint",
                begun,
                time.monotonic(),
                under=self._places.get(stage, attempt_place(self._world)),
                attributes={"arctic.stage": stage, "arctic.step": report.step, "arctic.tokens": report.tokens},
            )
        )

    @contextmanager
    def part(self, name: str, step: int) -> Iterator[None]:
        """Record what is done within, in the stage under way or after the last one."""
        begun, error = time.monotonic(), ""
        under = self._stage.place if self._stage else attempt_place(self._world)
        try:
            yield
        except BaseException as failure:
            error = type(failure).__name__
            raise
        finally:
            tracing.record(
                Span(name, begun, time.monotonic(), under=under, error=error, attributes={"arctic.step": step})
            )
