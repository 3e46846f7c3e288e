import dataclasses
import os
from pathlib import Path

from arctic_cluster import process


def spawn(tmp_path: Path, *command: str) -> process.Identity:
    return process.spawn(command, tmp_path / "log", [], {"PATH": os.environ["PATH"]})


def test_the_state_and_start_time_are_read_past_a_command_with_brackets_and_spaces() -> None:
    stat = "42 (a) b (c) Z 1 42 42 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 2000"
    assert process.parse_stat(stat) == ("Z", 98765)


def test_a_process_is_known_again_and_one_with_its_pid_alone_is_not() -> None:
    this = process.identify(os.getpid())
    assert this is not None
    assert process.alive(this)
    assert not process.alive(dataclasses.replace(this, started=this.started - 1))


def test_a_spawned_process_runs_in_a_session_of_its_own_and_writes_to_its_log(tmp_path: Path) -> None:
    identity = spawn(tmp_path, "sh", "-c", "echo said; echo complained >&2; sleep 60")
    try:
        assert os.getsid(identity.pid) == identity.pid
        while (tmp_path / "log").read_text() != "said\ncomplained\n":
            assert process.alive(identity)
    finally:
        process.kill([identity])
    assert not process.alive(identity)


def test_a_spawned_process_makes_what_everybody_can_read_under_a_strict_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        identity = spawn(tmp_path, "sh", "-c", "umask; exec sleep 60")
    finally:
        os.umask(before)
    try:
        while not (said := (tmp_path / "log").read_text()):
            assert process.alive(identity)
    finally:
        process.kill([identity])
    assert said == "0022\n"


def test_a_process_with_a_recycled_pid_is_not_killed(tmp_path: Path) -> None:
    identity = spawn(tmp_path, "sleep", "60")
    process.kill([dataclasses.replace(identity, started=identity.started - 1)])
    assert process.alive(identity)
    process.kill([identity])
    assert not process.alive(identity)


def test_a_zombie_is_not_alive(tmp_path: Path) -> None:
    identity = spawn(tmp_path, "sleep", "60")
    os.kill(identity.pid, 9)
    os.waitid(os.P_PID, identity.pid, os.WEXITED | os.WNOWAIT)
    assert not process.alive(identity)
    os.waitpid(identity.pid, 0)
