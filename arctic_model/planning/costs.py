"""Costs of a machine in a file: what `benchmarks.planner` has measured, and plans and simulations predict with."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from arctic_model.planning.serving_time import ServingCosts
from arctic_model.planning.training_time import TrainingWork

_Kind = TypeVar("_Kind", TrainingWork, ServingCosts)


@dataclass(frozen=True)
class Costs:
    """Of one machine, with all of its cores."""

    training: TrainingWork
    """Of one rank, in fp32."""
    serving: ServingCosts
    """Of the native engine in one pod, weights in FP8, keys and values in bf16."""

    def write(self, path: Path) -> None:
        """Write what `read_costs` reads."""
        beside = path.with_name(f"{path.name}.part")
        beside.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        beside.replace(path)


def read_costs(path: Path) -> Costs:
    """Read a file. Raises ValueError with a sentence that names what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read: {error}; `python -m benchmarks.planner` writes one") from None
    return Costs(
        _part(path, content, "training", TrainingWork),
        _part(path, content, "serving", ServingCosts),
    )


def _part(path: Path, content: Any, name: str, kind: type[_Kind]) -> _Kind:
    values = content.get(name) if isinstance(content, dict) else None
    names = {field.name for field in fields(kind)}
    if not isinstance(values, dict) or values.keys() != names:
        raise ValueError(f"{path}: {name} must have {', '.join(sorted(names))}; write it anew")
    for field, value in values.items():
        if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{path}: {name}.{field} is {value!r}, and must be seconds of at least 0")
    return kind(**values)
