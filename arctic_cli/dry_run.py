"""`arctic train --dry-run`: what a training will take and read, said without starting anything."""

from pathlib import Path
from typing import Any

from arctic_api.common import parse_tokens
from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import locate
from arctic_cli.local import local_mounts
from arctic_cli.models import Manifest, Models
from arctic_cli.plan.choice import Choice
from arctic_cli.plan.text import aligned
from arctic_cli.plan.training import report_training
from arctic_cli.plan.training_report import render_table

DEFAULT_MFU = 0.4


def describe_run(file: Path, content: dict[str, Any], volumes: Path, run_folder: Path, rate: float | None) -> str:
    """Return the plan for people: memory of a rank, steps, least time; what of each source is read; time and cost.

    Args:
        file: of the manifest.
        content: the manifest, which is right.
        volumes: folder of local claims.
        run_folder: of the training here, which may have prepared some of its text.
        rate: tokens a second at which time and cost are said; None where none is given.
    """
    manifest = Manifest(file, content)
    spec = ArcticTrainingSpec.model_validate(content["spec"])
    planned = report_training(manifest, Models([manifest], volumes), Choice(None, None, None, None), DEFAULT_MFU, None)
    lines = [render_table(planned), "", *aligned(_sources(spec, volumes, run_folder))]
    if rate is not None:
        lines += ["", _time(spec, rate)]
    return "\n".join(lines)


def _sources(spec: ArcticTrainingSpec, volumes: Path, run_folder: Path) -> list[list[str]]:
    """Return a row for each source that is trained on; tokens are known once its text is prepared, else estimated."""
    from arctic_workers.training.data.prepare import source_weights
    from arctic_workers.training.data.streams import Prepared
    from arctic_workers.training.data.survey import glance

    mounts = local_mounts(spec.template, volumes)
    about = {seen.source.name: seen.tokens for seen in glance(spec, lambda path: locate(path, mounts))}
    rows = [["source", "tokens asked", "tokens there", "read"]]
    for name, asked in source_weights(spec).items():
        prepared = max(
            run_folder.glob(f"data/{name}-*/index.json"), key=lambda file: file.stat().st_mtime, default=None
        )
        there = Prepared(name, "", prepared.parent).content().tokens if prepared else about.get(name, 0)
        sign = "" if prepared else "about "
        known = [f"{sign}{there:,}", f"{sign}{asked / there:,.2f} times"] if there else ["not known", ""]
        rows.append([name, f"{asked:,.0f}", *known])
    return rows


def _time(spec: ArcticTrainingSpec, rate: float) -> str:
    hours = sum(parse_tokens(stage.tokens) for stage in spec.curriculum.stages) / rate / 3600
    ranks = spec.parallelism.nodes * spec.parallelism.processes_per_node
    line = f"At {rate:,.0f} tokens a second: {hours:,.2f} hours, {hours * ranks:,.2f} of devices"
    price = spec.price_per_gpu_hour
    return f"{line}." if price is None else f"{line}, ${hours * ranks * float(price):,.2f} at ${price} an hour."
