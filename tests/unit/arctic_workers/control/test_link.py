import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arctic_rpc.control_pb2 import RUNNING, TrainingState, WorkerState
from arctic_workers.control.commands import NotNow, Unsupported
from arctic_workers.control.link import Command, LinkClient, LinkedCommands, LinkServer

SECONDS = 100.0

RANK = """
import time
from arctic_rpc.control_pb2 import RUNNING, TrainingState, WorkerState
from arctic_workers.control.link import LinkClient

link = LinkClient.from_environment()
step, running = 0, True
while running:
    step += 1
    link.publish(WorkerState(phase=RUNNING, training=TrainingState(step=step, loss=float("nan"))))
    for command in link.poll():
        if command.name == "checkpoint":
            command.answer(step=step, tokens=10 * step, uri=f"file:///c/{step}", time="2026-01-01T00:00:00Z")
        elif command.name == "pause":
            command.refuse("Nothing to pause.")
        elif command.name == "profile":
            command.answer(uri=f"file:///trace/{command.arguments['steps']}")
        elif command.name == "stop":
            command.answer()
            running = False
    time.sleep(0.02)
link.publish(WorkerState(phase=RUNNING, message="the last word"))
link.close()
"""


class States:
    """Collects states and lets a test wait for one."""

    def __init__(self) -> None:
        self.seen: list[WorkerState] = []
        self._news = threading.Condition()

    def __call__(self, state: WorkerState) -> None:
        with self._news:
            self.seen.append(state)
            self._news.notify_all()

    def wait_for(self, count: int) -> None:
        self.wait_until(lambda seen: len(seen) >= count)

    def wait_until(self, holds: Callable[[list[WorkerState]], bool]) -> None:
        with self._news:
            assert self._news.wait_for(lambda: holds(self.seen), SECONDS)


@pytest.fixture
def states() -> States:
    return States()


@pytest.fixture
def link(states: States) -> Iterator[LinkServer]:
    with LinkServer(states) as server:
        yield server


def start_rank(link: LinkServer) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", RANK], env={**os.environ, **link.environment})


def test_the_rank_says_on_every_line_that_it_has_begun(states: States, tmp_path: Path) -> None:
    with LinkServer(on_state=states) as first:
        client = LinkClient(first.path)
        client.publish(WorkerState())
        states.wait_for(1)
        assert not first.begun
        client.begin()
        client.publish(WorkerState(message="later"))
        states.wait_for(2)
        assert first.begun
        client.close()


def command_of(client: LinkClient) -> Command:
    """Return the next command that a rank is asked for."""
    for _ in range(int(SECONDS * 100)):
        if commands := client.poll():
            (command,) = commands
            return command
        threading.Event().wait(0.01)
    raise AssertionError("no command came")


class TestProcesses:
    def test_states_commands_and_the_last_word_cross(self, link: LinkServer, states: States) -> None:
        with start_rank(link) as rank:
            states.wait_for(2)
            commands = LinkedCommands(link, stop=lambda: None)
            report = commands.checkpoint(SECONDS)
            assert (report.tokens, report.uri) == (10 * report.step, f"file:///c/{report.step}")
            assert commands.profile(4, SECONDS) == "file:///trace/4"
            with pytest.raises(NotNow, match="Nothing to pause"):
                commands.pause(SECONDS)
            assert link.send_command("stop", SECONDS) == {}
            assert rank.wait(SECONDS) == 0
        states.wait_until(lambda seen: seen[-1].message == "the last word")
        assert states.seen[0].phase == RUNNING
        assert states.seen[0].training.step >= 1

    def test_a_command_outlives_the_rank_that_died_before_it_answered(self, link: LinkServer, states: States) -> None:
        with start_rank(link) as rank:
            states.wait_for(1)
            rank.send_signal(signal.SIGSTOP)
            answer = link.submit("checkpoint")
            rank.kill()
        with start_rank(link) as second:
            assert answer.result(SECONDS)["uri"].startswith("file:///c/")
            link.submit("stop").result(SECONDS)
            assert second.wait(SECONDS) == 0

    def test_a_sticky_stop_reaches_a_rank_that_comes_later(self, link: LinkServer) -> None:
        stop = link.submit("stop")
        with start_rank(link) as rank:
            assert stop.result(SECONDS) == {}
            assert rank.wait(SECONDS) == 0


class TestAbsence:
    def test_a_rank_that_starts_before_its_supervisor_sends_its_newest_state(
        self, tmp_path: Path, states: States, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "link-folder"
        monkeypatch.setattr("tempfile.mkdtemp", lambda prefix: folder)
        client = LinkClient(str(folder / "link"))
        for step in range(1, 4):
            client.publish(WorkerState(training=TrainingState(step=step)))
        assert client.poll() == []
        folder.mkdir()
        with LinkServer(states):
            states.wait_for(1)
            client.close()
        assert states.seen[0].training.step == 3

    def test_a_rank_ends_without_its_supervisor(self, tmp_path: Path) -> None:
        client = LinkClient(str(tmp_path / "nobody"))
        client.publish(WorkerState())
        client.close(timeout=0.05)
        client.publish(WorkerState())

    def test_an_answer_that_was_lost_with_its_line_is_given_again(self, tmp_path: Path) -> None:
        path = tmp_path / "link"
        command = json.dumps({"id": "a", "command": "pause", "arguments": {}}).encode() + b"\n"

        def exchange(listener: socket.socket) -> Any:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                connection.sendall(command)
                return json.loads(lines.readline())

        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(SECONDS)
            listener.bind(str(path))
            listener.listen()
            client = LinkClient(str(path))
            connection, _ = listener.accept()
            with connection:
                connection.sendall(command)
                asked = command_of(client)
            asked.answer(done=1)
            assert exchange(listener) == {"id": "a", "answer": {"done": 1}}
            assert exchange(listener) == {"id": "a", "answer": {"done": 1}}
            assert client.poll() == []
            client.close()

    def test_a_missing_rank_is_told_at_once(self, link: LinkServer) -> None:
        with pytest.raises(NotNow, match="not on the line"):
            LinkedCommands(link, stop=lambda: None).pause(SECONDS)

    def test_a_silent_rank_is_a_timeout_and_its_late_answer_nobodys(self, link: LinkServer, states: States) -> None:
        client = LinkClient(link.path)
        client.publish(WorkerState())
        states.wait_for(1)
        with pytest.raises(TimeoutError, match="'pause'"):
            link.send_command("pause", 0.01)
        command_of(client).answer()
        answer = link.submit("resume")
        command_of(client).answer(ok=True)
        assert answer.result(SECONDS) == {"ok": True}
        client.close()

    def test_closing_the_supervisors_end_ends_who_waits(self, states: States) -> None:
        link = LinkServer(states)
        outcome: list[Exception] = []

        def ask() -> None:
            try:
                link.send_command("pause", SECONDS)
            except Exception as error:
                outcome.append(error)

        asking = threading.Thread(target=ask)
        client = LinkClient(link.path)
        asking.start()
        command_of(client)
        link.close()
        asking.join()
        client.close()
        assert isinstance(outcome[0], NotNow)

    def test_garbage_on_the_line_leaves_the_supervisor_serving(self, link: LinkServer, states: States) -> None:
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(link.path)
            stranger.sendall(b"garbage\n")
            assert stranger.recv(1) == b""
        client = LinkClient(link.path)
        client.publish(WorkerState())
        states.wait_for(1)
        client.close()


def test_stop_is_the_supervisors_own_and_drain_unknown(link: LinkServer) -> None:
    stopped = threading.Event()
    commands = LinkedCommands(link, stop=stopped.set)
    commands.stop(1.0)
    assert stopped.is_set()
    with pytest.raises(Unsupported):
        commands.drain(1.0)


def test_the_socket_is_its_users_alone_and_goes_with_the_server(states: States) -> None:
    with LinkServer(states) as server:
        path = Path(server.path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.parent.exists()


def test_without_a_supervisor_there_is_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARCTIC_LINK", raising=False)
    assert LinkClient.from_environment() is None
