"""A training whose nodes fail, and how what that costs is said."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean

from arctic_api.common import parse_duration
from arctic_api.training import ArcticTrainingSpec
from arctic_cli.manifest import ManifestError
from arctic_cli.models import Manifest
from arctic_cli.plan.text import aligned, count
from arctic_cli.plan.training_report import Report, duration
from arctic_model.planning.failures import Interruptions
from arctic_simulator.training import Fleet, Outcome, Run, train

_RUNS = 20
"""From seeds that follow each other: what one run meets is chance."""
_HOPELESS = 100.0
"""Times as long as without failures: what is not simulated, as it would hardly end."""


@dataclass(frozen=True)
class Failures:
    """What the command line says; seconds."""

    node_between: float
    spares: int
    repair: float
    checkpoint: float
    restart: float
    seed: int


def simulate_training(report: Report, manifest: Manifest, failures: Failures) -> str:
    """Return a table for people. Raises ManifestError where nobody knows how long a step takes."""
    training, spending = report.plan.training, report.spending
    if spending is None:
        raise ManifestError("how fast this machine multiplies isn't known: install numpy, or name another --device")
    spec = ArcticTrainingSpec.model_validate(manifest.content["spec"])
    every, steps = spec.checkpoint.every, sum(stage.steps for stage in training.stages)
    if not steps:
        raise ManifestError(f"{manifest.file}: spec.curriculum.stages: no stage has tokens")
    work = spending.seconds
    step = work / steps

    def possible(interval: float) -> float:  # none comes within a step, and one at the end at the latest
        return min(max(interval, step), work)

    interval = possible(parse_duration(every.interval) if every.interval is not None else (every.steps or steps) * step)
    fleet = Fleet(training.nodes, failures.spares, failures.node_between, failures.repair)
    run = Run(work, interval, failures.checkpoint, failures.restart)
    formula = run.interruptions(fleet)
    best = replace(run, interval=possible(formula.best_interval))
    if formula.seconds(1.0, interval) > _HOPELESS:
        raise ManifestError(f"{manifest.file}: {_why_hopeless(run, best, formula, training.nodes)}")
    outcomes = [[train(each, fleet, seed=failures.seed + number) for number in range(_RUNS)] for each in (run, best)]
    return "\n".join(
        [
            f"{count(training.nodes, 'node')}, one of which fails every {duration(formula.between_failures)}; "
            f"steps take {duration(run.work)} at an MFU of {report.mfu:g} (assumed).",
            "",
            *aligned(_rows((run, best), outcomes)),
            "",
            f"By Daly's formula, with spares enough: {duration(formula.seconds(run.work, interval))} as it is, "
            f"{duration(formula.seconds(run.work, best.interval))} with a checkpoint every {duration(best.interval)}.",
        ]
    )


def _why_hopeless(run: Run, best: Run, formula: Interruptions, nodes: int) -> str:
    comes = f"a checkpoint comes every {duration(run.interval)}"
    if run.checkpoint > _HOPELESS * run.interval / 2:
        return (
            f"{comes} and stops the steps for {duration(run.checkpoint)}: they would hardly go on; "
            "write a longer interval, or name a shorter --checkpoint-stop"
        )
    fails = f"of {count(nodes, 'node')} one fails every {duration(formula.between_failures)}"
    if formula.seconds(1.0, best.interval) > _HOPELESS:
        return (
            f"{fails}, and a restart takes {duration(run.restart)}: no interval of checkpoints would let it get far; "
            "name a greater --node-mtbf, or a shorter --restart"
        )
    return f"{comes}, and {fails}: it would hardly get to one; write an interval of about {duration(best.interval)}"


def _rows(runs: tuple[Run, Run], outcomes: list[list[Outcome]]) -> list[list[str]]:
    parts: dict[str, Callable[[Outcome], float]] = {
        "steps that count": lambda outcome: outcome.work,
        "lost by failures": lambda outcome: outcome.lost,
        "checkpoints": lambda outcome: outcome.checkpoints,
        "restarts": lambda outcome: outcome.restarts,
        "waiting for a node": lambda outcome: outcome.waiting,
        "= all": lambda outcome: outcome.seconds,
    }
    return [
        [f"means of {_RUNS} runs", "as the manifest has it", "best interval"],
        ["a checkpoint every", *(duration(run.interval) for run in runs)],
        *([name, *(duration(fmean(map(part, each))) for each in outcomes)] for name, part in parts.items()),
        ["longest run", *(duration(max(outcome.seconds for outcome in each)) for each in outcomes)],
        ["failures", *(f"{fmean(outcome.failures for outcome in each):,.1f}" for each in outcomes)],
        ["share of the time that counts", *(f"{fmean(outcome.goodput for outcome in each):.1%}" for each in outcomes)],
    ]
