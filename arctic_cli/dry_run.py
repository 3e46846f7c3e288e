"""`arctic train --dry-run`: what a training will take and read, said without starting anything."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arctic_api.common import parse_tokens
from arctic_api.training import ArcticTrainingSpec
from arctic_cli.data import Supply
from arctic_cli.forecast import device_time
from arctic_cli.models import Manifest, Models
from arctic_cli.plan.choice import Choice
from arctic_cli.plan.text import aligned
from arctic_cli.plan.training import report_training
from arctic_cli.plan.training_report import render_table

DEFAULT_MFU = 0.4


def describe_run(
    file: Path, content: dict[str, Any], volumes: Path, supplies: Sequence[Supply], rate: float | None
) -> str:
    """Return the plan for people: memory of a rank, steps, least time; what of each source is read; time and cost.

    Args:
        file: of the manifest.
        content: the manifest, which is right.
        volumes: folder of local claims.
        supplies: what there is of its sources.
        rate: tokens a second at which time and cost are said; None: the one that the manifest expects, if any.
    """
    manifest = Manifest(file, content)
    spec = ArcticTrainingSpec.model_validate(content["spec"])
    planned = report_training(manifest, Models([manifest], volumes), Choice(None, None, None, None), DEFAULT_MFU, None)
    lines = [render_table(planned), "", *aligned(_sources(supplies))]
    rate = rate or spec.expected_tokens_per_second
    if rate is not None:
        lines += ["", _time(spec, rate)]
    return "\n".join(lines)


def _sources(supplies: Sequence[Supply]) -> list[list[str]]:
    """Return a row for each source that is trained on; tokens are known once its text is prepared, else estimated."""
    rows = [
        [supply.source.name, f"{supply.asked:,.0f}", supply.amount or "not known", supply.times] for supply in supplies
    ]
    return [["source", "tokens asked", "tokens there", "read"], *rows]


def _time(spec: ArcticTrainingSpec, rate: float) -> str:
    hours = sum(parse_tokens(stage.tokens) for stage in spec.curriculum.stages) / rate / 3600
    return f"At {rate:,.0f} tokens a second: {hours:,.2f} hours; {device_time(spec, hours)}."
