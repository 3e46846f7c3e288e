"""How local processes begin and end: with `arctic` itself, whatever ends it."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from api_cases import TRAINING, apply_changes

from arctic_api.world import ExitCode

pytestmark = pytest.mark.processes

WORKER = """
import json, os, signal, sys, threading
stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
place, rank = os.environ["PLACE"], os.environ["ARCTIC_NODE_RANK"]
open(f"{place}/listens-{rank}", "w").close()
if os.environ.get("BABBLES"):
    os.write(1, bytes([0xFF, 10]))
print("up", os.getpid(), flush=True)
if os.environ.get("FAILS"):
    sys.exit(1)
if os.environ.get("RESTS"):
    report = {"outcome": "interrupted", "reason": "Suspended", "message": "suspended after step 5"}
    open(json.loads(os.environ["ARCTIC_WORLD"])["terminationMessage"], "w").write(json.dumps(report))
    sys.exit(75)
stopped.wait()
open(f"{place}/asked-{rank}", "w").close()
sys.exit(75)
"""
ARCTIC = """
import json, os, sys
from pathlib import Path
from arctic_cli import local
manifest, place = json.loads(sys.argv[1]), Path(sys.argv[2])
local.TRAINING_MODULE = "worker"
sys.exit(local.run_training(manifest, place / "volumes", local.stop_flag()))
"""
"""`arctic train` with another worker."""

Start = Callable[..., "Arctic"]


class Arctic:
    """A running `arctic train` of two nodes."""

    def __init__(self, place: Path, changes: dict, hangup: signal.Handlers) -> None:
        (place / "worker.py").write_text(WORKER)
        self.place = place
        self.process = subprocess.Popen(
            [sys.executable, "-c", ARCTIC, json.dumps(apply_changes(TRAINING, changes)), str(place)],
            # A command that is killed leaves what it had put into TMPDIR.
            env={**os.environ, "PYTHONPATH": str(place), "PLACE": str(place), "TMPDIR": str(place)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, hangup),  # whatever the tests themselves were started with
        )

    def line(self, words: str) -> str:
        """The next line with the words."""
        assert self.process.stdout is not None
        return next(line for line in self.process.stdout if words in line)

    def workers(self) -> list[int]:
        """The pids of both workers, once they are up."""
        return [int(self.line("up").split()[-1]) for _ in range(2)]

    def ignored(self) -> set[int]:
        """The signals that `arctic` ignores, by the kernel's word."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        mask = int(next(line for line in lines if line.startswith("SigIgn:")).split()[1], 16)
        return {number for number in range(1, 65) if mask >> (number - 1) & 1}

    def asked(self) -> list[str]:
        return sorted(path.name for path in self.place.glob("asked-*"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Arctic] = []

    def begin(changes: dict | None = None, hangup: signal.Handlers = signal.SIG_DFL) -> Arctic:
        started.append(Arctic(tmp_path, changes or {}, hangup))
        return started[-1]

    yield begin
    for arctic in started:
        arctic.process.kill()
        arctic.process.communicate()


def ended(pid: int) -> bool:
    """Wait until a process that is no child of ours has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 60)[0])
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_ends_arctic_ends_its_workers_in_order(start: Start, number: signal.Signals) -> None:
    arctic = start()
    workers = arctic.workers()
    arctic.process.send_signal(number)
    assert arctic.process.wait(60) == ExitCode.INTERRUPTED
    assert arctic.asked() == ["asked-0", "asked-1"]
    assert all(map(ended, workers))


def test_bytes_of_a_worker_that_are_no_text_do_not_end_what_is_told_of_it(start: Start) -> None:
    arctic = start({"spec.template": {"environment": [{"name": "BABBLES", "value": "1"}]}})
    assert len(arctic.workers()) == 2


def test_workers_are_asked_to_end_when_arctic_is_killed(start: Start) -> None:
    arctic = start()
    workers = arctic.workers()
    arctic.process.kill()
    assert all(map(ended, workers))
    assert arctic.asked() == ["asked-0", "asked-1"]


def test_a_training_that_runs_here_is_not_started_beside_itself(start: Start) -> None:
    first = start()
    first.workers()
    second = start()
    assert f"process {first.process.pid} runs tiny of namespace default here already" in second.line("of namespace")
    assert second.process.wait(60) == 1
    assert first.asked() == [], "each would take the store from the other"
    first.process.kill()
    first.process.wait()
    assert start().workers(), "whoever was killed is in nobody's way"


def test_a_closed_terminal_that_is_to_be_ignored_is_ignored(start: Start) -> None:
    arctic = start(hangup=signal.SIG_IGN)  # as nohup(1) does
    arctic.workers()
    assert signal.SIGHUP in arctic.ignored()
    arctic.process.send_signal(signal.SIGTERM)
    assert arctic.process.wait(60) == ExitCode.INTERRUPTED


def test_arctic_ends_at_once_while_it_waits_for_the_next_attempt(start: Start) -> None:
    fails = {"environment": [{"name": "FAILS", "value": "1"}]}
    arctic = start({"spec.restart": {"backoff": {"initial": "10h", "max": "10h"}}, "spec.template": fails})
    arctic.line("the next one starts in")
    arctic.process.send_signal(signal.SIGTERM)
    assert arctic.process.wait(60) == ExitCode.INTERRUPTED


def test_a_training_that_rests_where_its_manifest_says_ends_once_and_says_how_it_goes_on(start: Start) -> None:
    rests = {"environment": [{"name": "RESTS", "value": "1"}]}
    arctic = start({"spec.restart": {"limit": 0}, "spec.template": rests, "spec.suspendAt": "20k"})
    told, _ = arctic.process.communicate(timeout=60)
    assert "interrupted: suspended after step 5\nraise spec.suspendAt, or leave it out, and run it again" in told
    assert arctic.process.returncode == ExitCode.INTERRUPTED


def test_a_training_that_is_not_done_within_its_active_deadline_fails_in_order(start: Start) -> None:
    arctic = start({"spec.activeDeadline": "3s"})
    assert "ActiveDeadlineExceeded: was not done within 3s" in arctic.line("within")
    assert arctic.process.wait(60) == 1
    listened = sorted(path.name.removeprefix("listens-") for path in arctic.place.glob("listens-*"))
    assert arctic.asked() == [f"asked-{rank}" for rank in listened]  # a busy machine may start fewer in that time


def test_one_failed_worker_ends_the_others(start: Start) -> None:
    arctic = start({"spec.restart": {"limit": 0}})
    victim, other = arctic.workers()
    os.kill(victim, signal.SIGKILL)
    assert "gave up after 1 failed attempts" in arctic.line("gave up")
    assert arctic.process.wait(60) == 1
    assert ended(other)
    assert len(arctic.asked()) == 1
