"""How the ranks of a pod tell their supervisor how they ended: one report each, in a folder that only they share."""

import os
from pathlib import Path

from arctic_api.world import Report
from arctic_workers.training.files import write_atomically

OUTCOME_VARIABLE = "ARCTIC_OUTCOME"
PEER_LOST = "PeerLost"
"""Reason of a rank that failed because another did, which is the one to ask."""


def write_outcome(report: Report) -> None:
    """Leave this rank's report, if there is a supervisor to read it."""
    folder = outcome_folder()
    if folder is not None:
        path = outcome_path(folder, f"{int(os.environ['LOCAL_RANK']):05d}")
        write_atomically(path, report.model_dump_json(by_alias=True, exclude_none=True).encode())


def outcome_path(folder: Path, who: str) -> Path:
    """Return where a report is left: by a rank under its number, or by who ended the ranks."""
    return folder / f"{who}.json"


def outcome_folder() -> Path | None:
    """Return the folder that ranks share with what starts them, if there is any."""
    folder = os.environ.get(OUTCOME_VARIABLE)
    return Path(folder) if folder else None


def read_outcomes(folder: Path) -> list[Report]:
    """Return the reports that the ranks left, by local rank, then those of who ended them."""
    return [Report.model_validate_json(path.read_bytes()) for path in sorted(folder.glob("*.json"))]
