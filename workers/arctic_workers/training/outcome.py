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
    folder = os.environ.get(OUTCOME_VARIABLE)
    if folder:
        path = Path(folder) / f"{int(os.environ['LOCAL_RANK']):05d}.json"
        write_atomically(path, report.model_dump_json(by_alias=True, exclude_none=True).encode())


def read_outcomes(folder: Path) -> list[Report]:
    """Return the reports that the ranks left, by local rank."""
    return [Report.model_validate_json(path.read_bytes()) for path in sorted(folder.glob("*.json"))]
