"""How far an evaluation is, by suite. Safe to use from several threads."""

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from arctic_api.evaluation import SuiteState
from arctic_api.world import FigureReport, SuiteReport

DONE, NOT_RUN, UNFIT = "done", "not run", "unfit"
_STATES: Mapping[str, SuiteState] = {DONE: "Done", NOT_RUN: "NotRun", UNFIT: "Unfit"}


class Progress:
    """Counts answers and verdicts of each suite that was asked for."""

    def __init__(self, suites: Iterable[str]) -> None:
        """Begin with all suites waiting."""
        self._suites = {name: SuiteReport(name=name, state="Waiting") for name in suites}
        self._lock = threading.Lock()

    def begin(self, suite: str, planned: int) -> None:
        """Say that a suite is under way, and how many answers it takes."""
        self._set(suite, state="Running", planned=planned)

    def answered(self, suite: str, count: int = 1) -> None:
        """Count answers."""
        with self._lock:
            self._change(suite, answered=self._suites[suite].answered + count)

    def judged(self, suite: str, count: int = 1) -> None:
        """Count verdicts."""
        with self._lock:
            self._change(suite, judged=self._suites[suite].judged + count)

    def end(self, suite: str, found: Mapping[str, Any]) -> None:
        """Say what a suite has found, as `results.json` has it."""
        figures = [FigureReport(name=name, **score) for name, score in found.get("figures", {}).items()]
        self._set(suite, state=_STATES[found["state"]], figures=figures, message=found.get("why", ""))

    def reports(self) -> list[SuiteReport]:
        """Return how far each suite is, in the order in which they were asked for."""
        with self._lock:
            return list(self._suites.values())

    def _set(self, suite: str, **fields: Any) -> None:
        with self._lock:
            self._change(suite, **fields)

    def _change(self, suite: str, **fields: Any) -> None:
        self._suites[suite] = self._suites[suite].model_copy(update=fields)
