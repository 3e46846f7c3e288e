"""The pod of an ArcticEvaluation: evaluates, tells meanwhile how far it is, and leaves a report.

What was answered and judged is in the evaluation's folder line by line, so a pod may end at any moment: the next one
goes on from there.
"""

import logging
import os
import threading
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from arctic_api import tracing
from arctic_api.keys import first_key
from arctic_api.uris import path_of
from arctic_api.world import (
    TERMINATION_MESSAGE,
    EvaluationReport,
    EvaluationWorld,
    FigureReport,
    SuiteReport,
)
from arctic_rpc.control_pb2 import RUNNING, FigureState, SuiteState, WorkerState
from arctic_workers.control.commands import Commands
from arctic_workers.control.logs import WITHOUT_LOGGER, configure_logs
from arctic_workers.control.probes import Heartbeat, ProbeServer
from arctic_workers.control.report import exit_code, write_report
from arctic_workers.control.server import ControlServer
from arctic_workers.control.signals import StopFlag
from arctic_workers.control.state import StateBoard
from arctic_workers.control.traces import begin_traces
from arctic_workers.control.world import BadWorld, read_told
from arctic_workers.evaluation.endpoint import Sampling
from arctic_workers.evaluation.model import Model, opened
from arctic_workers.evaluation.progress import DONE
from arctic_workers.evaluation.records import MixedError
from arctic_workers.evaluation.report import Evaluated, page
from arctic_workers.evaluation.run import Evaluation, evaluate_model
from arctic_workers.evaluation.sandbox import Sandbox, SandboxError
from arctic_workers.evaluation.scores import TOTAL
from arctic_workers.evaluation.serving import ModelError
from arctic_workers.evaluation.suites.form import DataError
from arctic_workers.evaluation.traces import TracedProgress
from arctic_workers.training.files import write_atomically

log = logging.getLogger(__name__)

PAGE = "report.html"
_TELL_SECONDS = 1.0
_HEARTBEAT_SECONDS = 60.0


def main(stop: StopFlag) -> int:
    """Be the pod; return its exit code, after the report is written."""
    configure_logs(os.environ, WITHOUT_LOGGER)
    path = TERMINATION_MESSAGE
    try:
        world = read_told(os.environ, EvaluationWorld, "an evaluation's pod is made by the operator")
        path = world.termination_message
        begin_traces("arctic-evaluation", world, os.environ)
        report = run(world, stop)
    except BadWorld as error:
        report = EvaluationReport(outcome="refused", reason="InvalidWorld", message=str(error))
    except Exception as error:
        log.exception("The pod failed")
        report = EvaluationReport(outcome="failed", reason="PodFailed", message=f"{type(error).__name__}: {error}")
    write_report(report, path)
    log.info("%s: %s", report.outcome, report.message)
    tracing.end()
    return exit_code(report.outcome)


class _Stops(Commands):
    """Ends in order when it is told to."""

    def __init__(self, stop: StopFlag) -> None:
        self._stop = stop

    def stop(self, timeout: float) -> None:  # noqa: ARG002 - the base's
        """See `Commands`."""
        self._stop.request()


def run(world: EvaluationWorld, stop: StopFlag) -> EvaluationReport:
    """Evaluate, serving control and metrics meanwhile; return how it ended."""
    board, heartbeat = StateBoard(world), Heartbeat(_HEARTBEAT_SECONDS)
    registry = CollectorRegistry()
    for register in (ProcessCollector, PlatformCollector):
        register(registry=registry)
    progress = TracedProgress(world)
    reports: list[EvaluationReport] = []
    work = threading.Thread(target=lambda: reports.append(concluded(world, progress)), daemon=True)
    with ExitStack() as stack:
        stack.enter_context(ControlServer(world, board, _Stops(stop), ready=work.is_alive))
        stack.enter_context(ProbeServer(world, registry, alive=heartbeat.alive, ready=work.is_alive))
        work.start()
        while work.is_alive() and not stop.requested.is_set():
            heartbeat.beat()
            board.publish(_state(progress.reports()))
            work.join(_TELL_SECONDS)
        board.publish(_state(progress.reports()))
    # The thread that evaluates, and the server of its model, end with this process.
    message = "was asked to end: what is answered so far is kept, and the next pod goes on"
    report = reports[0] if reports else _ended("interrupted", "Interrupted", message, progress)
    progress.tell(report)
    return report


def _state(suites: list[SuiteReport]) -> WorkerState:
    state = WorkerState(phase=RUNNING)
    state.evaluation.suites.extend(
        SuiteState(
            name=suite.name,
            state=suite.state,
            answered=suite.answered,
            judged=suite.judged,
            planned=suite.planned,
            figures=[FigureState(**figure.model_dump()) for figure in suite.figures],
            message=suite.message,
        )
        for suite in suites
    )
    return state


def concluded(world: EvaluationWorld, progress: TracedProgress) -> EvaluationReport:
    """Evaluate; whatever happens, return how it ended."""
    try:
        results = evaluated(world, progress)
    except (BadWorld, DataError, SandboxError, ModelError, MixedError) as error:
        return _ended("refused", "BadInput", str(error), progress)
    except Exception as error:
        log.exception("The evaluation failed")
        return _ended("failed", type(error).__name__, str(error) or repr(error), progress)
    found = results[TOTAL]
    if found["state"] != DONE:
        return _ended("succeeded", "Done", f"no enterprise intelligence: {found['why']}", progress)
    score = FigureReport(name=TOTAL, value=found["value"], low=found["low"], high=found["high"])
    report = _ended("succeeded", "Done", "", progress)
    return report.model_copy(update={"enterprise_intelligence": score})


def _ended(outcome: str, reason: str, message: str, progress: TracedProgress) -> EvaluationReport:
    fields = {"outcome": outcome, "reason": reason, "message": message, "suites": progress.reports()}
    return EvaluationReport.model_validate(fields)


def evaluated(world: EvaluationWorld, progress: TracedProgress) -> dict[str, Any]:
    """Evaluate the model of a world, write results and page, and return the results."""
    spec, folder = world.spec, Path(world.locate(world.folder))
    sampling = Sampling(spec.samples, spec.temperature, spec.seed)
    evaluation = Evaluation(world.model, _data(world), sampling, folder, spec.concurrency)
    with opened(_model(world), evaluation, log.info) as endpoint:
        progress.loaded()
        results = evaluate_model(evaluation, endpoint, cache(Sandbox), log.info, progress)
    others = [Evaluated.read(Path(world.locate(each))) for each in world.compared]
    write_atomically(folder / PAGE, page([Evaluated.read(folder), *others]).encode())
    return results


def _data(world: EvaluationWorld) -> dict[str, Path]:
    found = {suite.name: Path(world.locate(path_of(suite.uri))) for suite in world.spec.suites}
    for name, path in found.items():
        if not path.exists():
            raise DataError(f"{name}: {path} is not there: mount the claim that has it by spec.template.volumes")
    return {str(name): path for name, path in found.items()}


def _model(world: EvaluationWorld) -> Model:
    if world.weights_folder is not None:
        place = Path(world.locate(world.weights_folder))
        if not place.is_dir():
            raise ModelError(f"{place} is not there: mount the claim that has it by spec.template.volumes")
        return Model(str(place), world.model, world.spec.api)
    if world.url is None:
        raise BadWorld("it names neither weights nor an API")
    return Model(world.url, world.model, world.spec.api, _key(world))


def _key(world: EvaluationWorld) -> str | None:
    if world.credentials_folder is None:
        return None
    files = sorted(path for path in Path(world.credentials_folder).iterdir() if path.is_file())
    key = first_key({path.name: path.read_bytes() for path in files})
    if key is None:
        raise BadWorld("spec.model.credentials: the Secret has no key: write one a line into a value of it")
    return key
