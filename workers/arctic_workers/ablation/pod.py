"""The pod of an ablation: it reads its trainings' curves, and says what a swarm foretells, or writes the report."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry

from arctic_ablation.ranking import figures_of, is_judged
from arctic_ablation.study import Found, Point, TooFew, VariantStudy
from arctic_ablation.swarm.study import SwarmStudy
from arctic_api.ablation import ForecastStatus, ForetoldStatus, SwarmPart
from arctic_api.ablation_pod import AblationReport, AblationWorld, TrialWord
from arctic_api.world import TERMINATION_MESSAGE, run_folder
from arctic_workers.ablation.curve import read_curve
from arctic_workers.ablation.writing import write
from arctic_workers.control.logs import WITHOUT_LOGGER, configure_logs
from arctic_workers.control.probes import ProbeServer
from arctic_workers.control.report import LIMIT, exit_code, legible, write_word
from arctic_workers.control.world import BadWorld, read_told

log = logging.getLogger(__name__)


def main() -> int:
    """Be the pod; return its exit code, after the report is written."""
    configure_logs(os.environ, WITHOUT_LOGGER)
    path = TERMINATION_MESSAGE
    try:
        world = read_told(os.environ, AblationWorld, "an ablation's pod is made by the operator")
        path = world.termination_message
        with ProbeServer(world, CollectorRegistry(), alive=lambda: True, ready=lambda: True):
            report = done(world)
    except (BadWorld, TooFew) as error:
        report = AblationReport(outcome="refused", reason=type(error).__name__, message=str(error))
    except Exception as error:
        log.exception("The pod failed")
        report = AblationReport(outcome="failed", reason="PodFailed", message=f"{type(error).__name__}: {error}")
    report = fitting(report)
    write_word(report, lambda: encode(report), path)
    log.info("%s: %s", report.outcome, report.message or report.foretold)
    return exit_code(report.outcome)


def done(world: AblationWorld) -> AblationReport:
    """Do what the pod is for; `TooFew` where too few of a swarm's trainings came to their end."""
    if world.task != "report":
        return AblationReport(outcome="succeeded", reason="Done", foretold=foretold(world, world.task))
    study = VariantStudy(world.name, world.spec) if world.spec.mixture is None else _swarm(world)
    folder = Path(world.locate(world.folder))
    write(folder, world.name, world.spec, study, found(world), whole=world.whole)
    return AblationReport(outcome="succeeded", reason="Done")


def foretold(world: AblationWorld, part: SwarmPart) -> ForetoldStatus:
    """Return what a part of a swarm foretells."""
    study = _swarm(world)
    outlook = study.foretell(part, found(world))
    return ForetoldStatus(
        name=part,
        digest=study.digest,
        mixtures=study.space.written(outlook.weights),
        forecasts=[
            ForecastStatus(name=name, objective=f"{each.value:.4f}", interval=f"{each.low:.4f} to {each.high:.4f}")
            for name, each in outlook.forecasts.items()
        ],
    )


def _swarm(world: AblationWorld) -> SwarmStudy:
    study = SwarmStudy(world.name, world.spec, told={})
    study.hear(world.told)
    return study


def found(world: AblationWorld) -> Mapping[str, Found]:
    """Return what is known of the trainings: their curves, or what they were where they rested if there are none."""
    return {name: _found(world, name, word) for name, word in world.trials.items()}


def _found(world: AblationWorld, name: str, word: TrialWord) -> Found:
    wanted = world.spec.objective
    rests = [Point(each.tokens, figures_of(wanted, float(each.objective))) for each in word.points]
    if word.uid5 is None or not rests:
        return Found(rests, word.failed)
    curve = read_curve(Path(world.locate(run_folder(world.store, world.namespace, name, word.uid5))))
    end = rests[-1]
    between = [point for point in curve if is_judged(wanted, point.figures) and point.tokens < end.tokens]
    return Found([*(between or rests[:-1]), end], word.failed)


def fitting(report: AblationReport, limit: int = LIMIT) -> AblationReport:
    """Return what a kubelet reads whole: the report, or that it is too long, as what is foretold can't be cut."""
    cut = report.model_copy(update={"message": legible(report.message)[: limit // 8]})
    length = len(encode(cut))
    if length <= limit:
        return cut
    words = f"the mixtures take {length} bytes of {limit} that a pod can tell: write fewer sources, or stages"
    return AblationReport(outcome="refused", reason="TooManySources", message=words)


def encode(report: AblationReport) -> bytes:
    """Return the report as JSON."""
    return report.model_dump_json(by_alias=True, exclude_none=True).encode()
