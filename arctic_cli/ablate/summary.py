"""What `arctic ablate` says at the end."""

from pathlib import Path

from arctic_ablation.results import Results
from arctic_workers.ablation.writing import BEST, REPORT


def summary(made: Results, folder: Path) -> str:
    """Return in short what an ablation has found, and where the rest of it is."""
    lines = [*_ranking(made), f"report: {folder / REPORT}"]
    if made["best"] is not None:
        lines.append(f"best: {folder / BEST}")
    return "\n".join(lines)


def _ranking(made: Results) -> list[str]:
    shown = []
    for place, rank in enumerate(made["ranking"][:10], 1):
        interval = rank["interval"]
        sure = f" ({interval[0]:.4f} to {interval[1]:.4f} over {rank['seeds']} seeds)" if interval else ""
        shown.append(f"{place:2}. {rank['variant']}: {rank['objective']:.4f}{sure} after {rank['tokens']:,} tokens")
    return [*shown, f"{made['tokens']:,} tokens trained, of {made['tokens of all']:,} if nothing were stopped early"]
