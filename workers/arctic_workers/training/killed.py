"""The word of ranks that were killed, and can leave none themselves."""

import signal
from typing import Any

from arctic_api.world import Report
from arctic_workers.control.memory import Memory
from arctic_workers.training.files import write_atomically
from arctic_workers.training.outcome import outcome_folder, outcome_path

CAUSES = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
"""Signals that end a rank for a reason of its own; it aborts also because a peer is lost."""
OUT_OF_MEMORY, RANK_KILLED, RANKS_LOST = "OOMKilled", "RankKilled", "RanksLost"


def leave_word(error: Any, epoch: int) -> None:
    """Say which rank ended first, if a signal ended it, after the words of ranks and of who may have killed one.

    Args:
        error: torchrun's `ChildFailedError`.
        epoch: the attempt's.
    """
    rank, failure = error.get_first_failure()
    folder = outcome_folder()
    if folder is None or -failure.exitcode not in CAUSES:
        return
    name = signal.Signals(-failure.exitcode).name
    report = Report(outcome="failed", reason=RANK_KILLED, message=f"rank {rank} was killed by {name}", epoch=epoch)
    write_atomically(outcome_path(folder, "killed"), report.model_dump_json(by_alias=True, exclude_none=True).encode())


def with_memory(report: Report, before: Memory, after: Memory) -> Report:
    """Return a report that blames the memory, if the kernel has killed for it whoever has left no word.

    Args:
        report: of the pod.
        before: the container's memory when the ranks were started.
        after: the same when they had ended.
    """
    if report.reason not in (RANK_KILLED, RANKS_LOST) or after.kills <= before.kills:
        return report
    message = f"{report.message}: the kernel killed for want of memory, and the container {after}"
    return report.model_copy(update={"reason": OUT_OF_MEMORY, "message": message})
