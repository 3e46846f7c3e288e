"""What an ablation leaves in its folder: results, report and the winner's manifest; and what it says at the end."""

import io
from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML

from arctic_ablation.results import Results, results
from arctic_ablation.study import Found, Study
from arctic_api.ablation import ArcticAblationSpec
from arctic_workers.ablation.page import page
from arctic_workers.training.files import write_atomically, write_json

RESULTS, REPORT, BEST = "results.json", "report.html", "best.yaml"


def write(
    folder: Path, name: str, spec: ArcticAblationSpec, study: Study, found: Mapping[str, Found], *, whole: bool
) -> str:
    """Write everything into the folder of an ablation, and return it in short for people."""
    made = results(name, spec, study, found, whole=whole)
    write_json(folder / RESULTS, made)
    write_atomically(folder / REPORT, page(made).encode())
    lines = [*_ranking(made), f"report: {folder / REPORT}"]
    if made["best"] is not None:
        stream = io.StringIO()
        YAML(typ="safe", pure=True).dump(made["best"], stream)
        write_atomically(folder / BEST, stream.getvalue().encode())
        lines.append(f"best: {folder / BEST}")
    return "\n".join(lines)


def _ranking(made: Results) -> list[str]:
    shown = []
    for place, rank in enumerate(made["ranking"][:10], 1):
        interval = rank["interval"]
        sure = f" ({interval[0]:.4f} to {interval[1]:.4f} over {rank['seeds']} seeds)" if interval else ""
        shown.append(f"{place:2}. {rank['variant']}: {rank['objective']:.4f}{sure} after {rank['tokens']:,} tokens")
    return [*shown, f"{made['tokens']:,} tokens trained, of {made['tokens of all']:,} if nothing were stopped early"]
