"""What a training will take, as its status says before the first step."""

import math
from decimal import Decimal
from typing import Any

from arctic_api.common import parse_tokens
from arctic_api.rules import stage_step
from arctic_api.training import ArcticTrainingSpec, ArcticTrainingStatus, Stage
from arctic_operator.live import TrainingObservation

_MI = 2**20


def wanted_stages(spec: ArcticTrainingSpec) -> list[Stage]:
    """Return the stages that are to be trained."""
    stages = spec.curriculum.stages
    last = next((i for i, stage in enumerate(stages) if stage.name == spec.stop_after), len(stages) - 1)
    return stages[: last + 1]


def planned(
    spec: ArcticTrainingSpec, before: ArcticTrainingStatus, seen: TrainingObservation | None, gpus: float
) -> dict[str, Any]:
    """Return steps, tokens, time and cost, which follow from the specification, and memory, which rank 0 plans.

    Memory stays what it was where rank 0 is not heard. Each pod has so many GPUs.
    """
    sizes = [(parse_tokens(stage.tokens), stage_step(spec, stage)) for stage in wanted_stages(spec)]
    steps = [math.ceil(budget / size) for budget, size in sizes]
    tokens = sum(count * size for count, (_, size) in zip(steps, sizes, strict=True))
    memory = math.ceil(seen.planned_memory / _MI) if seen else 0
    rate = spec.expected_tokens_per_second
    return {
        "planned_steps": sum(steps),
        "planned_tokens": tokens,
        "planned_memory": f"{memory}Mi" if memory else before.planned_memory,
        "planned_time": _duration(math.ceil(tokens / rate)) if rate else None,
        "planned_cost_usd": cost(spec, tokens / rate / 3600 * spec.parallelism.nodes * (gpus or 1)) if rate else None,
    }


def _duration(seconds: int) -> str:
    """Return a duration as manifests have it, to the second below an hour and to the minute above."""
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}h{minutes}m" if hours else f"{minutes}m{seconds % 60}s"


def cost(spec: ArcticTrainingSpec, hours: float) -> str | None:
    """Return the price of so many GPU hours, in US dollars; None where none is given, or none was spent."""
    if spec.price_per_gpu_hour is None or not hours:
        return None
    return str((Decimal(spec.price_per_gpu_hour) * Decimal(hours)).quantize(Decimal("0.01")))
