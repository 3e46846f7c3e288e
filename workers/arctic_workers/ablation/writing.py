"""What an ablation leaves in its folder: results, report and the winner's manifest."""

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
) -> Results:
    """Write everything into the folder of an ablation, and return what was found."""
    made = results(name, spec, study, found, whole=whole)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULTS, made)
    write_atomically(folder / REPORT, page(made).encode())
    if made["best"] is not None:
        stream = io.StringIO()
        YAML(typ="safe", pure=True).dump(made["best"], stream)
        write_atomically(folder / BEST, stream.getvalue().encode())
    return made
