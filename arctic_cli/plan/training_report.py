"""How a plan of training is said: a table for people, JSON for programs. Pure."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from arctic_cli.plan.text import aligned, billions, count, size_unit, written
from arctic_model.cost import count_parameters
from arctic_model.planning.training import HOUR, PARTS, Spending, Stage, StepTime, TrainingPlan
from arctic_model.planning.training_advice import Change

DAY = 24 * HOUR


@dataclass(frozen=True)
class Report:
    """A plan and what is said around it."""

    name: str
    source: str
    """Where the model's configuration was found."""
    plan: TrainingPlan
    predicted: list[float] | None
    """Seconds of a step by stage, where costs of steps were measured."""
    asked_mfu: float
    """Utilization to be assumed."""
    price: float | None
    """US dollars a GPU hour."""
    changes: list[Change]
    """What would make it fit."""
    refused: list[str]
    """Why the API server would not take the manifest."""

    @property
    def mfu(self) -> float:
        """Assumed utilization: what was asked for, or all that the plan can reach."""
        return self.asked_mfu if self.plan.mfu is None else min(self.asked_mfu, self.plan.mfu)

    @property
    def spending(self) -> Spending | None:
        """Time and devices at the assumed utilization; None on a CPU whose rate isn't known."""
        return self.plan.spending(self.mfu)

    @property
    def notes(self) -> list[str]:
        """What the figures rest on, or don't say, in this case."""
        device, training = self.plan.device, self.plan.training
        notes = [f"arctic validate refuses this manifest: {problem}" for problem in self.refused]
        if device.bf16_flops is None and training.nodes > 1:
            notes.append("each node is taken to be a machine like this one")
        if device.network is None and training.world > 1:
            notes.append("how fast bytes go between ranks isn't known here, and is left out")
        return notes


def render_table(report: Report) -> str:
    """Return a report for people."""
    plan, training = report.plan, report.plan.training
    parameters = count_parameters(training.config)
    lines = [
        f"{report.name} ({report.source}): {billions(parameters.total)} parameters, "
        f"a token uses {billions(parameters.active)}",
        f"a world: {count(training.nodes, 'node')} x {training.processes_per_node} = "
        f"{count(training.world, 'rank')} ({plan.device.title}), expertParallel {training.expert_parallel}, "
        f"sequenceParallel {training.sequence_parallel}, zeroStage {training.zero_stage}, "
        f"{training.compute}{' with products in fp8' if training.fp8 else ''}",
        "",
        *aligned(_memory_rows(plan)),
        "",
        *_conclusion(report),
        "",
        *aligned(_stage_rows(plan)),
        "",
        *_limit(plan),
        *_prediction(report),
        *_spending(report),
    ]
    if report.notes:
        lines += ["", *(f"Note: {note}." for note in report.notes)]
    return "\n".join(lines)


def _memory_rows(plan: TrainingPlan) -> list[list[str]]:
    unit, size = size_unit(plan.memory.total())
    rows = [[f"{unit} on each rank", ""]]
    rows += [[part, f"{plan.memory[part] / size:,.3f}"] for part in PARTS]
    rows.append(["= all", f"{plan.memory.total() / size:,.3f}"])
    rows.append(["memory", f"{plan.device.memory / size:,.3f}"])
    return rows


def _conclusion(report: Report) -> list[str]:
    plan = report.plan
    unit, size = size_unit(plan.memory.total())
    if plan.fits:
        return [f"It fits: {plan.left / size:,.3f} {unit.split()[0]} are left on a rank."]
    lines = [f"It does not fit: {-plan.left / size:,.3f} {unit.split()[0]} too much on a rank."]
    if not report.changes:
        return [*lines, "  Nothing that the manifest may say makes it fit: take devices with more memory."]
    return [
        *lines,
        *(
            f"  write {written(change.fields)}: then {change.plan.left / size:,.3f} {unit.split()[0]} are left"
            for change in report.changes
        ),
    ]


def _stage_rows(plan: TrainingPlan) -> list[list[str]]:
    rows = [["stage", "tokens", "steps", "tokens a step", "sequence", "activations", "seconds a step, at least"]]
    for stage, step, again in zip(plan.training.stages, plan.steps, plan.recomputed, strict=True):
        figures = [stage.tokens, stage.steps, stage.tokens_per_step, stage.sequence_length]
        seconds = "-" if step is None else f"{step.total:,.3f}"
        rows.append(
            [stage.name, *(f"{figure:,}" for figure in figures), "computed again" if again else "kept", seconds]
        )
    return rows


def _limit(plan: TrainingPlan) -> list[str]:
    seconds, mfu = plan.seconds, plan.mfu
    steps = [step for step in plan.steps if step is not None]
    if seconds is None or mfu is None or not steps:
        return []
    longest = max(steps, key=lambda step: step.total)
    return [
        f"It takes at least {duration(seconds)}, an MFU of {mfu:.2f}: a limit, no prediction.",
        f"  Of {longest.total:,.3f} s: arithmetic {longest.compute:,.3f}, the experts' exchange "
        f"{longest.exposed:,.3f} ({longest.exchange:,.3f} if nothing hid it), "
        + (f"heads of sequences {longest.sequence:,.3f}, " if plan.training.sequence_parallel > 1 else "")
        + "gradients and weights "
        f"{longest.reduction:,.3f}, optimizer {longest.optimizer:,.3f}.",
    ]


def _prediction(report: Report) -> list[str]:
    if report.predicted is None:
        return []
    stages = report.plan.training.stages
    whole = sum(stage.steps * seconds for stage, seconds in zip(stages, report.predicted, strict=True))
    steps = ", ".join(
        f"{stage.name} {seconds:,.3f} s ({stage.tokens_per_step / seconds:,.0f} tokens/s)"
        for stage, seconds in zip(stages, report.predicted, strict=True)
    )
    return [f"By the costs of steps that were measured here it takes {duration(whole)}: a step of {steps}."]


def _spending(report: Report) -> list[str]:
    spending = report.spending
    if spending is None:
        return []
    reached = f"At an MFU of {report.mfu:.3g}, the limit (for {report.asked_mfu:g})"
    said = f"At an MFU of {report.mfu:g} (assumed)" if report.mfu == report.asked_mfu else reached
    line = f"{said}: {duration(spending.seconds)}, {spending.device_weeks:,.2f} weeks of one device"
    if report.price is not None:
        line += f", ${spending.cost(report.price):,.0f} at ${report.price:g} an hour"
    return [f"{line}."]


def duration(seconds: float) -> str:
    """Return a time in a unit that suits it."""
    if seconds >= 2 * DAY:
        return f"{seconds / DAY:,.1f} days"
    if seconds >= 2 * HOUR:
        return f"{seconds / HOUR:.1f} hours"
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.2g} s"


def render_json(report: Report) -> str:
    """Return a report for programs: bytes, seconds, US dollars."""
    plan, training, spending = report.plan, report.plan.training, report.spending
    parameters = count_parameters(training.config)
    content = {
        "name": report.name,
        "model": {
            "source": report.source,
            "parameters": parameters.total,
            "activeParameters": parameters.active,
        },
        "device": {
            "title": plan.device.title,
            "memory": plan.device.memory,
            "bandwidth": plan.device.bandwidth,
            "fp32Flops": plan.device.fp32_flops,
            "bf16Flops": plan.device.bf16_flops,
            "fabric": plan.device.fabric,
            "network": plan.device.network,
        },
        "world": {"nodes": training.nodes, "processesPerNode": training.processes_per_node, "ranks": training.world},
        "memory": {part: plan.memory[part] for part in PARTS},
        "fits": plan.fits,
        "stages": [_stage_json(*stage) for stage in zip(training.stages, plan.steps, plan.recomputed, strict=True)],
        "flops": plan.flops,
        "secondsAtLeast": plan.seconds,
        "stepsPredicted": report.predicted,
        "mfuAtMost": plan.mfu,
        "assumed": None
        if spending is None
        else {
            "mfu": report.mfu,
            "seconds": spending.seconds,
            "deviceHours": spending.device_hours,
            "costUSD": None if report.price is None else spending.cost(report.price),
        },
        "changes": [{"fields": change.fields, "memory": change.plan.memory.total()} for change in report.changes],
        "notes": report.notes,
    }
    return json.dumps(content, indent=2)


def _stage_json(stage: Stage, step: StepTime | None, recomputed: bool) -> dict[str, Any]:
    return {
        "name": stage.name,
        "tokens": stage.tokens,
        "steps": stage.steps,
        "tokensPerStep": stage.tokens_per_step,
        "sequenceLength": stage.sequence_length,
        "recomputesActivations": recomputed,
        "stepAtLeast": None if step is None else {**asdict(step), "total": step.total},
    }
