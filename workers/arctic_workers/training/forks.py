"""Trainings of one rank, one after the other or side by side, that share one start of torch and DeepSpeed.

`python -m arctic_workers.training.forks` imports all that a rank needs, once, and forks for each training: a start
takes tenths of a second instead of seconds, which small trainings by the dozen are otherwise made of. It reads a line
of JSON for each, `{"world": ..., "log": file}`, and answers each with `{"name": ..., "report": ...}` once it has ended.
SIGTERM ends the trainings where they are, and what it started with them; each goes on from its last checkpoint.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, NoReturn

from arctic_api.world import WORLD_VARIABLE, Report, TrainingWorld
from arctic_workers.control.lifeline import die_with_parent
from arctic_workers.training import rank
from arctic_workers.training.outcome import OUTCOME_VARIABLE, read_outcomes
from arctic_workers.training.supervisor import rank_environment


def start(world: TrainingWorld, log: Path, outcomes: Path) -> int:
    """Fork a rank that is a world by itself, and return its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        die_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _redirect(log)
        os.environ.update(_environment(world, outcomes))
        code = rank.main()
        sys.stdout.flush()
    finally:
        os._exit(code)  # what the parent has open, and would do at its end, is not this process's


def _redirect(log: Path) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)


def _environment(world: TrainingWorld, outcomes: Path) -> dict[str, str]:
    """Return what torchrun and the supervisor tell a rank."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0"}
    meeting = {"MASTER_ADDR": world.first_host, "MASTER_PORT": str(world.ports.rendezvous)}
    contract = {WORLD_VARIABLE: world.model_dump_json(by_alias=True), OUTCOME_VARIABLE: str(outcomes)}
    return {**rank_environment(world, os.environ), **alone, **meeting, **contract}


def _answer(lock: threading.Lock, name: str, report: Report) -> None:
    with lock:
        print(json.dumps({"name": name, "report": report.wire()}), flush=True)


def _run(request: dict[str, Any], lock: threading.Lock, pid: int, world: TrainingWorld, outcomes: Path) -> None:
    _, status = os.waitpid(pid, 0)
    reports = read_outcomes(outcomes)
    lost = f"its process ended with {os.waitstatus_to_exitcode(status)} and no word: see {request['log']}"
    _answer(lock, world.name, reports[0] if reports else Report(outcome="failed", reason="RanksLost", message=lost))


def _end(scratch: Path) -> NoReturn:
    """End at once, whatever threads wait for, and leave nothing behind."""
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(128 + signal.SIGTERM)


def main() -> int:
    """Serve requests until there are no more."""
    lock = threading.Lock()
    waiting = []
    with tempfile.TemporaryDirectory(prefix="arctic-forks-") as scratch:
        signal.signal(signal.SIGTERM, lambda *_: _end(Path(scratch)))
        for number, line in enumerate(sys.stdin):
            request = json.loads(line)
            world = TrainingWorld.model_validate(request["world"])
            outcomes = Path(scratch) / str(number)
            outcomes.mkdir()
            # Forked here, not in the thread that waits: the kernel ends a rank with the thread that has started it.
            pid = start(world, Path(request["log"]), outcomes)
            thread = threading.Thread(target=_run, args=(request, lock, pid, world, outcomes), daemon=True)
            thread.start()
            waiting.append(thread)
        for thread in waiting:
            thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
