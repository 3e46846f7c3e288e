import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from arctic_api.inference import ArcticInferenceSpec
from arctic_api.world import CheckpointReport, InferenceGroup, Ports
from arctic_operator import control
from arctic_operator.certificates import Authority, ClientTLS, client_tls, server_secret
from arctic_operator.control import CommandError, Followers, observation_of
from arctic_operator.live import (
    CheckpointSeen,
    EvaluationObservation,
    Figures,
    InferenceObservation,
    Live,
    Phase,
    SourceSeen,
    StageSeen,
    TrainingObservation,
)
from arctic_operator.live import LogSums as Sums
from arctic_rpc.control_pb2 import (
    DRAINING,
    RUNNING,
    CheckpointState,
    ExposedCommunication,
    FigureState,
    InferenceState,
    LogSums,
    SourceState,
    StageState,
    TrainingState,
    WorkerState,
)
from arctic_workers.control.commands import Commands, NotNow
from arctic_workers.control.ports import free_ports
from arctic_workers.control.server import ControlServer
from arctic_workers.control.state import StateBoard

SECONDS = 60.0
KEY = "team/chat-g0"
NAME = "chat.team"


class Draining(Commands):
    """A worker that drains, checkpoints and records, and can't be paused just now."""

    def __init__(self, board: StateBoard) -> None:
        self._board = board

    def drain(self, timeout: float) -> None:
        self._board.publish(WorkerState(phase=DRAINING, inference=InferenceState(draining=True, running=2)))

    def checkpoint(self, timeout: float) -> CheckpointReport:
        return CheckpointReport(step=5, tokens=500, uri="file:///c/5", time="2026-01-02T03:04:05Z")

    def pause(self, timeout: float) -> None:
        raise NotNow("There is nothing to pause.")

    def profile(self, steps: int, timeout: float) -> str:
        return f"file:///trace/{steps}"


class Worker:
    """A real control server that can be ended and started again on its port."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.world = InferenceGroup(
            namespace="team",
            name="chat",
            uid="0e5e7e0c-0000-4000-8000-000000000000",
            hosts=["127.0.0.1"],
            ports=Ports(control=port, metrics=0),
            tls_folder=str(folder),
            spec=ArcticInferenceSpec.model_validate({"model": {"training": "tiny"}}),
            group="chat-0e5e7-r1-g0",
            revision="r1",
            model_folder="/model",
        )
        self.board = StateBoard(self.world)
        self._server = ControlServer(self.world, self.board, Draining(self.board), bool)
        self.port = self._server.start()
        self.address = f"127.0.0.1:{self.port}"
        self.running = True

    def end(self) -> None:
        if self.running:
            self._server.stop(grace=0)
            self.running = False


@pytest.fixture
def authority() -> Authority:
    return Authority.create(datetime.now(UTC))


@pytest.fixture
def tls(authority: Authority) -> ClientTLS:
    return client_tls(authority, datetime.now(UTC))


@pytest.fixture
def folder(tmp_path: Path, authority: Authority) -> Path:
    write(tmp_path, authority)
    return tmp_path


def write(folder: Path, authority: Authority) -> None:
    for name, content in server_secret(authority, "chat", "team", datetime.now(UTC)).items():
        (folder / name).write_bytes(content)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def start(port: int = 0) -> Worker:
        workers.append(Worker(folder, port))
        return workers[-1]

    yield start
    for worker in workers:
        worker.end()


class Changes:
    """Counts changes and lets a test wait for a state of things."""

    def __init__(self) -> None:
        self.keys: list[Hashable] = []
        self._news = asyncio.Event()

    def __call__(self, key: Hashable) -> None:
        self.keys.append(key)
        self._news.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not holds():
                self._news.clear()
                await self._news.wait()


@pytest.fixture
def changes() -> Changes:
    return Changes()


@pytest.fixture
async def followers(changes: Changes, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Followers]:
    monkeypatch.setattr(control, "BACKOFF_FIRST", 0.02)
    monkeypatch.setattr(control, "BACKOFF_LAST", 0.1)
    followers = Followers(changes)
    yield followers
    await followers.close()


def live(followers: Followers, key: Hashable = KEY) -> Live:
    found = followers.latest(key)
    assert found is not None
    return found


def figures(followers: Followers) -> InferenceObservation:
    found = live(followers).observation
    assert isinstance(found, InferenceObservation)
    return found


def connections(port: int) -> int:
    """Return how many connections to a port of this machine stand, as the kernel lists them."""
    tables = [path.read_text().splitlines()[1:] for path in Path("/proc/net").glob("tcp*")]
    rows = [line.split() for table in tables for line in table]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


class TestFollowing:
    async def test_states_arrive_with_the_time_of_their_arrival(
        self, start: Callable[..., Worker], followers: Followers, changes: Changes, tls: ClientTLS
    ) -> None:
        worker, before = start(), datetime.now(UTC)
        followers.follow(KEY, worker.address, NAME, tls)
        assert live(followers) == Live()
        await changes.until(lambda: live(followers).connected)
        assert figures(followers).phase == Phase.STARTING
        assert before <= (live(followers).received or before - timedelta(1)) <= datetime.now(UTC)
        counted = InferenceState(ready=True, waiting=7, ended=3, failed=1, ttft=LogSums(count=2, sum=-0.5))
        worker.board.publish(WorkerState(phase=RUNNING, inference=counted))
        await changes.until(lambda: figures(followers).ready)
        assert (figures(followers).waiting, figures(followers).uid) == (7, worker.world.uid)
        assert figures(followers).figures == Figures(3, 1, Sums(2, -0.5))
        assert set(changes.keys) == {KEY}

    async def test_workers_are_reached_past_the_proxy_that_leads_to_the_api_server(
        self,
        start: Callable[..., Worker],
        followers: Followers,
        changes: Changes,
        tls: ClientTLS,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name in ("https_proxy", "http_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.delenv("no_proxy")
        followers.follow(KEY, start().address, NAME, tls)
        await changes.until(lambda: live(followers).connected)

    async def test_a_stream_resumes_after_the_worker_came_back(
        self, start: Callable[..., Worker], followers: Followers, changes: Changes, tls: ClientTLS
    ) -> None:
        worker = start(*free_ports(1))
        followers.follow(KEY, worker.address, NAME, tls)
        await changes.until(lambda: live(followers).connected)
        await asyncio.to_thread(worker.end)
        await changes.until(lambda: not live(followers).connected)
        assert worker.address in live(followers).error
        assert figures(followers).uid == worker.world.uid
        again = start(worker.port)
        await changes.until(lambda: live(followers).connected)
        assert live(followers).error == ""
        again.board.publish(WorkerState(phase=RUNNING, inference=InferenceState(running=3)))
        await changes.until(lambda: figures(followers).running == 3)

    async def test_following_the_same_again_changes_nothing(
        self, start: Callable[..., Worker], followers: Followers, changes: Changes, tls: ClientTLS
    ) -> None:
        worker = start()
        followers.follow(KEY, worker.address, NAME, tls)
        await changes.until(lambda: live(followers).connected)
        before = live(followers)
        followers.follow(KEY, worker.address, NAME, tls)
        assert live(followers) is before

    async def test_another_address_is_followed_anew(
        self, start: Callable[..., Worker], followers: Followers, changes: Changes, tls: ClientTLS
    ) -> None:
        first, second = start(), start()
        followers.follow(KEY, first.address, NAME, tls)
        await changes.until(lambda: live(followers).connected)
        followers.follow(KEY, second.address, NAME, tls)
        assert live(followers) == Live()
        second.board.publish(WorkerState(phase=RUNNING, inference=InferenceState(running=9)))
        await changes.until(lambda: live(followers).connected and figures(followers).running == 9)

    async def test_a_world_that_is_not_followed_any_more_is_silent(
        self, start: Callable[..., Worker], followers: Followers, changes: Changes, tls: ClientTLS
    ) -> None:
        worker, other = start(), start()
        followers.follow(KEY, worker.address, NAME, tls)
        followers.follow("other", other.address, NAME, tls)
        await changes.until(lambda: live(followers).connected and live(followers, "other").connected)
        followers.unfollow(KEY)
        followers.unfollow("never followed")
        assert followers.latest(KEY) is None
        changes.keys.clear()
        worker.board.publish(WorkerState(phase=RUNNING))
        other.board.publish(WorkerState(phase=RUNNING))
        await changes.until(lambda: live(followers, "other").observation is not None and bool(changes.keys))
        assert set(changes.keys) == {"other"}

    async def test_no_connection_outlives_its_following(
        self, start: Callable[..., Worker], followers: Followers, changes: Changes, tls: ClientTLS
    ) -> None:
        worker = start()
        keys = range(5)
        for key in keys:
            followers.follow(key, worker.address, NAME, tls)
        await changes.until(lambda: all(live(followers, key).connected for key in keys))
        assert connections(worker.port) == len(keys)
        gc.collect()
        gc.disable()  # connections must go by themselves: a quiet operator collects cycles rarely
        try:
            for key in keys:
                followers.unfollow(key)
            async with asyncio.timeout(SECONDS):
                while connections(worker.port):  # noqa: ASYNC110 - the kernel tells nobody
                    await asyncio.sleep(0.05)
        finally:
            gc.enable()

    async def test_a_worker_that_accepts_and_says_nothing_is_told_as_such(
        self, followers: Followers, changes: Changes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control, "FIRST_STATE_SECONDS", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            followers.follow(KEY, f"127.0.0.1:{silent.getsockname()[1]}", NAME, None)
            await changes.until(lambda: "no state came within" in live(followers).error)

    async def test_a_state_that_cannot_be_read_does_not_end_the_following(
        self, start: Callable[..., Worker], followers: Followers, changes: Changes, tls: ClientTLS
    ) -> None:
        worker = start()
        beyond_every_calendar = Timestamp(seconds=10**15)
        worker.board.publish(WorkerState(phase=RUNNING, inference=InferenceState(), time=beyond_every_calendar))
        followers.follow(KEY, worker.address, NAME, tls)
        await changes.until(lambda: "Error: " in live(followers).error)
        worker.board.publish(WorkerState(phase=RUNNING, inference=InferenceState()))
        await changes.until(lambda: live(followers).connected)


class TestTrust:
    async def test_a_worker_with_another_name_is_refused(
        self, start: Callable[..., Worker], followers: Followers, changes: Changes, tls: ClientTLS
    ) -> None:
        followers.follow(KEY, start().address, "code.team", tls)
        await changes.until(lambda: "code.team is not in peer certificate" in live(followers).error)
        assert live(followers).observation is None

    async def test_a_worker_of_another_authority_is_refused(
        self, start: Callable[..., Worker], followers: Followers, changes: Changes, tls: ClientTLS
    ) -> None:
        stranger = Authority.create(datetime.now(UTC))
        followers.follow(KEY, start().address, NAME, ClientTLS(tls.pair, stranger.bundle))
        await changes.until(lambda: "CERTIFICATE_VERIFY_FAILED" in live(followers).error)

    async def test_new_certificates_are_used_from_the_next_connection_on(
        self,
        start: Callable[..., Worker],
        folder: Path,
        followers: Followers,
        changes: Changes,
        tls: ClientTLS,
    ) -> None:
        worker = start(*free_ports(1))
        followers.follow(KEY, worker.address, NAME, tls)
        await changes.until(lambda: live(followers).connected)
        await asyncio.to_thread(worker.end)
        other = Authority.create(datetime.now(UTC))
        write(folder, other)
        start(worker.port)
        await changes.until(lambda: "CERTIFICATE_VERIFY_FAILED" in live(followers).error)
        followers.follow(KEY, worker.address, NAME, client_tls(other, datetime.now(UTC)))
        await changes.until(lambda: live(followers).connected)


class TestCommands:
    async def test_commands_are_done_and_answered(
        self, start: Callable[..., Worker], followers: Followers, changes: Changes, tls: ClientTLS
    ) -> None:
        followers.follow(KEY, start().address, NAME, tls)
        await followers.drain(KEY)
        await changes.until(lambda: live(followers).connected and figures(followers).draining)
        assert figures(followers).running == 2
        moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        assert await followers.checkpoint(KEY) == CheckpointSeen(5, 500, "file:///c/5", moment)
        assert await followers.profile(KEY, 3) == "file:///trace/3"

    async def test_a_refusal_has_a_code_and_a_sentence(
        self, start: Callable[..., Worker], followers: Followers, tls: ClientTLS
    ) -> None:
        followers.follow(KEY, start().address, NAME, tls)
        with pytest.raises(CommandError) as refused:
            await followers.pause(KEY)
        assert (refused.value.code, refused.value.sentence) == ("FAILED_PRECONDITION", "There is nothing to pause.")
        for command in (followers.resume, followers.stop):
            with pytest.raises(CommandError, match=r"This worker can't be .*UNIMPLEMENTED"):
                await command(KEY)

    async def test_a_worker_that_is_away_is_an_error_not_a_wait(self, followers: Followers) -> None:
        (port,) = free_ports(1)
        followers.follow(KEY, f"127.0.0.1:{port}", NAME, None)
        with pytest.raises(CommandError, match="UNAVAILABLE"):
            await followers.drain(KEY)

    async def test_a_worker_that_does_not_answer_is_given_up(self, followers: Followers) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            followers.follow(KEY, f"127.0.0.1:{silent.getsockname()[1]}", NAME, None)
            with pytest.raises(CommandError, match="DEADLINE_EXCEEDED"):
                await followers.stop(KEY, seconds=0.2)

    async def test_a_world_that_is_not_followed_cannot_be_commanded(self, followers: Followers) -> None:
        with pytest.raises(CommandError, match="does not follow"):
            await followers.drain(KEY)


class TestObservations:
    def test_a_training_is_read_whole(self) -> None:
        message = WorkerState(uid="u", epoch=2, phase=RUNNING, message="m")
        message.time.FromJsonString("2026-01-01T00:00:09Z")
        message.training.CopyFrom(
            TrainingState(
                stage="code",
                step=9,
                tokens=900,
                loss=2.5,
                tokens_per_second=100.0,
                mfu=0.25,
                learning_rate=1e-3,
                gradient_norm=0.5,
                stages=[
                    StageState(
                        name="general",
                        tokens=500,
                        checkpoint="file:///c/5",
                        initial_validation_loss=3.0,
                        validation_loss=2.0,
                    ),
                    StageState(name="code", tokens=400),
                ],
                last_checkpoint=CheckpointState(step=5, tokens=500, uri="file:///c/5"),
                sources=[
                    SourceState(name="a", documents=9, skipped=1, tokens=80, epochs=0.5, planned_epochs=2.0),
                    SourceState(name="b", unused_splits=["test"]),
                ],
                exposed_communication=[
                    ExposedCommunication(layer=1, kind="combine", in_flight_seconds=1.0, exposed_seconds=0.25),
                    ExposedCommunication(layer=3, kind="combine", in_flight_seconds=1.0, exposed_seconds=0.25),
                    ExposedCommunication(kind="gradients", in_flight_seconds=0.5, exposed_seconds=0.5),
                    ExposedCommunication(layer=1, kind="counts", in_flight_seconds=1.5, exposed_seconds=0.0),
                ],
                expert_chunks=4,
                planned_memory_bytes=5000,
            )
        )
        message.training.stages[0].start_time.FromJsonString("2026-01-01T00:00:01Z")
        message.training.stages[0].completion_time.FromJsonString("2026-01-01T00:00:05Z")
        message.training.last_checkpoint.time.FromJsonString("2026-01-01T00:00:05Z")
        first, fifth, ninth = (datetime(2026, 1, 1, second=second, tzinfo=UTC) for second in (1, 5, 9))
        assert observation_of(message) == TrainingObservation(
            uid="u",
            epoch=2,
            phase=Phase.RUNNING,
            message="m",
            time=ninth,
            stage="code",
            step=9,
            tokens=900,
            loss=2.5,
            tokens_per_second=100.0,
            mfu=0.25,
            learning_rate=1e-3,
            gradient_norm=0.5,
            exposed_communication=0.25,
            exposed_by_kind={"combine": 0.25, "gradients": 1.0, "counts": 0.0},
            planned_memory=5000,
            expert_chunks=4,
            stages=(StageSeen("general", 500, first, fifth, "file:///c/5", 3.0, 2.0), StageSeen("code", 400)),
            last_checkpoint=CheckpointSeen(5, 500, "file:///c/5", fifth),
            sources=(SourceSeen("a", 9, 1, 80, 0.5, 2.0, ()), SourceSeen("b", 0, 0, 0, 0.0, 0.0, ("test",))),
        )

    def test_figures_that_are_not_known_or_not_finite_are_none(self) -> None:
        fresh = observation_of(WorkerState(training=TrainingState()))
        assert isinstance(fresh, TrainingObservation)
        assert (fresh.loss, fresh.mfu, fresh.tokens_per_second, fresh.last_checkpoint) == (None, None, None, None)
        spoilt = observation_of(WorkerState(training=TrainingState(step=1, loss=float("nan"), mfu=float("inf"))))
        assert isinstance(spoilt, TrainingObservation)
        assert (spoilt.loss, spoilt.mfu, spoilt.tokens_per_second) == (None, None, 0.0)

    def test_a_phase_of_a_newer_protocol_is_unknown(self) -> None:
        message = WorkerState(inference=InferenceState(ttft=LogSums(count=1, sum=float("nan"))))
        message.phase = 99  # type: ignore[assignment]
        seen = observation_of(message)
        assert isinstance(seen, InferenceObservation)
        assert (seen.phase, seen.figures) == (Phase.UNKNOWN, Figures())

    def test_what_an_evaluation_says_of_its_suites_is_read(self) -> None:
        figures = [
            FigureState(name="pass@1", value=0.5, low=0.25, high=0.75),
            FigureState(name="x", value=float("nan")),
        ]
        message = WorkerState(uid="u", phase=RUNNING)
        message.evaluation.suites.add(name="gsm8k", state="Running", answered=3, judged=2, planned=9, figures=figures)
        seen = observation_of(message)
        assert isinstance(seen, EvaluationObservation)
        (suite,) = seen.suites
        assert (seen.uid, suite.name, suite.state) == ("u", "gsm8k", "Running")
        assert (suite.answered, suite.judged, suite.planned) == (3, 2, 9)
        assert [(figure.name, figure.value, figure.low, figure.high) for figure in suite.figures] == [
            ("pass@1", 0.5, 0.25, 0.75)
        ]

    def test_a_state_without_detail_is_refused(self) -> None:
        with pytest.raises(ValueError, match="version"):
            observation_of(WorkerState())
