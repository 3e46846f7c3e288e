"""The trace of an evaluation, as one of its pods has seen it: loading the model, and the suites. Never an answer."""

import time
from collections.abc import Mapping
from typing import Any

from arctic_api import tracing
from arctic_api.tracing import Place, Span
from arctic_api.world import EvaluationReport, EvaluationWorld
from arctic_workers.control.traces import made_by_operator
from arctic_workers.evaluation.progress import Progress


class TracedProgress(Progress):
    """How far an evaluation is, which records what is over: each suite, and at the end the whole."""

    def __init__(self, world: EvaluationWorld) -> None:
        """Begin now."""
        super().__init__(suite.name for suite in world.spec.suites)
        self._world = world
        self._place = Place.drawn(world.uid)
        self._begun = time.monotonic()
        self._suites_begun: dict[str, float] = {}

    def loaded(self) -> None:
        """Record that the model can be asked from now on."""
        about = {"gen_ai.request.model": self._world.model}
        tracing.record(Span("load", self._begun, time.monotonic(), under=self._place, attributes=about))

    def begin(self, suite: str, planned: int) -> None:
        """See `Progress`."""
        super().begin(suite, planned)
        self._suites_begun[suite] = time.monotonic()

    def end(self, suite: str, found: Mapping[str, Any]) -> None:
        """See `Progress`."""
        super().end(suite, found)
        self._tell_suite(suite)

    def tell(self, report: EvaluationReport) -> None:
        """Record how the pod ends, with the suite that it ends in."""
        for suite in list(self._suites_begun):
            self._tell_suite(suite)
        tracing.record(
            Span(
                "evaluation",
                self._begun,
                time.monotonic(),
                under=made_by_operator(self._world),
                place=self._place,
                error=report.message if report.outcome in ("failed", "refused") else "",
                attributes={
                    "arctic.outcome": report.outcome,
                    "arctic.reason": report.reason,
                    "gen_ai.request.model": self._world.model,
                },
            )
        )

    def _tell_suite(self, suite: str) -> None:
        begun = self._suites_begun.pop(suite, None)
        if begun is None:  # it ended just as the pod was asked to, and is told of
            return
        report = next(each for each in self.reports() if each.name == suite)
        tracing.record(
            Span(
                "suite",
                begun,
                time.monotonic(),
                under=self._place,
                error=report.message,
                attributes={
                    "arctic.suite": suite,
                    "arctic.suite.state": report.state,
                    "arctic.suite.planned": report.planned,
                    "arctic.suite.answered": report.answered,
                    "arctic.suite.judged": report.judged,
                },
            )
        )
