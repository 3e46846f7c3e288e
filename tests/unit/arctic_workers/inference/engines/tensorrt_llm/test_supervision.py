"""What pod 0 and the later pods know of each other, and of the leader, without SSH and without MPI."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arctic_workers.inference.engines.tensorrt_llm.launch import LINK_COMMAND, SHELL, Place
from arctic_workers.inference.engines.tensorrt_llm.link import Link, LinkEnd
from arctic_workers.inference.engines.tensorrt_llm.ranks import Ranks

LEADER = """
import os, signal, sys, time
def end(*_):
    open({report!r}, "w").write('{{"outcome": "succeeded"}}')
    os._exit(0)
signal.signal(signal.SIGTERM, end)
open({pid!r} + ".partial", "w").write(str(os.getpid()))
os.rename({pid!r} + ".partial", {pid!r})
time.sleep(60)
"""


def until(condition: Callable[[], bool], limit: float = 60) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("p"))


@pytest.fixture
def line(place: Place) -> Iterator[tuple[Link, LinkEnd, list[str]]]:
    """Both ends, with our shell between them in the place of SSH."""
    heard: list[str] = []
    end = LinkEnd(place.link, heard.append)
    shell = [sys.executable, "-S", "-E", str(SHELL), str(place.folder)]
    link = Link("later", ["env", f"SSH_ORIGINAL_COMMAND={LINK_COMMAND}", *shell])
    yield link, end, heard
    link.close()


def test_each_end_hears_the_others_words(line: tuple[Link, LinkEnd, list[str]]) -> None:
    link, end, heard = line
    assert link.here.wait(60)
    for word in ("ready", "waiting", "done"):
        link.tell(word)  # type: ignore[arg-type]
    until(lambda: heard == ["ready", "waiting", "done"])
    assert not link.stop.is_set()
    end.tell("stop")
    assert link.stop.wait(60)
    assert not link.lost.is_set()
    assert not end.lost.is_set()


def test_each_end_notices_that_the_other_is_gone(line: tuple[Link, LinkEnd, list[str]]) -> None:
    link, end, _ = line
    assert link.here.wait(60)
    link.close()
    assert end.lost.wait(60)
    assert link.lost.wait(60)
    link.tell("ready")  # to nobody, which is no error
    end.tell("stop")


def test_what_a_connection_that_fails_complains_of_is_kept() -> None:
    link = Link("later", ["sh", "-c", "echo Connection refused >&2; exit 255"])
    assert link.lost.wait(60)
    until(lambda: bool(link.complaint))
    assert (link.here.is_set(), link.complaint) == (False, "Connection refused")
    link.close()


@pytest.fixture
def ranks(place: Place) -> Iterator[Ranks]:
    """A leader below something that stands for mpirun, and does not end with it."""
    leader = LEADER.format(report=str(place.report), pid=str(place.leader))
    script = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(60)"
    it = Ranks(place, [sys.executable, "-c", script, leader], os.environ)
    until(lambda: it.begun)
    yield it
    it.end()


def test_a_leader_that_is_told_to_end_leaves_its_last_word(ranks: Ranks) -> None:
    assert not ranks.leaderless
    ranks.ask(0)
    assert ranks.asked == 0
    ranks.ask(1)
    until(lambda: ranks.leaderless)
    report = ranks.report()
    assert report is not None
    assert (report.outcome, ranks.asked, ranks.code) == ("succeeded", 1, None)


def test_a_leader_that_is_killed_leaves_none(ranks: Ranks, place: Place) -> None:
    os.kill(int(place.leader.read_text()), signal.SIGKILL)
    until(lambda: ranks.leaderless)
    assert ranks.report() is None


def test_nothing_outlives_the_end(ranks: Ranks, place: Place) -> None:
    leader = int(place.leader.read_text())
    ranks.end()
    assert ranks.code == -signal.SIGTERM
    until(lambda: ranks.leaderless)
    assert subprocess.run(["ps", "-o", "stat=", "-p", str(leader)], capture_output=True, text=True).stdout[:1] in "Z"


def test_what_has_not_begun_is_not_asked(place: Place) -> None:
    it = Ranks(place, ["sleep", "60"], os.environ)
    it.ask(2)
    assert (it.begun, it.leaderless, it.asked) == (False, False, 0)
    it.end()
    assert Path(place.leader).exists() is False
