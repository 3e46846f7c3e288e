"""What a training of an ablation was found to be on its way."""

from pathlib import Path

from arctic_ablation.study import Point
from arctic_workers.training.journal import read_lines, that_hold
from arctic_workers.training.milestones import CURVE


def read_curve(folder: Path) -> list[Point]:
    """Return the evaluations of a run, by its folder; none where there are none."""
    return [Point(line["tokens"], line["figures"]) for line in that_hold(read_lines(folder / CURVE))]
