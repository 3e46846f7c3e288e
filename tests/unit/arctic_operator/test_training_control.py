"""What a training is told, over real streams, and what is answered."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from arctic_api.training import CheckpointRequest
from arctic_api.world import CheckpointReport, Ports, TrainingWorld
from arctic_operator.cache import Key
from arctic_operator.commands import Commands
from arctic_operator.control import Followers
from arctic_operator.live import Live, Phase, TrainingObservation
from arctic_operator.observed import Job, TrainingSeen
from arctic_operator.plan.actions import Command
from arctic_operator.plan.training import plan_training
from arctic_operator.plan.training_control import commands
from arctic_rpc.control_pb2 import PAUSED, RUNNING, TrainingState, WorkerState
from arctic_workers.control.commands import Commands as WorkerCommands
from arctic_workers.control.commands import NotNow
from arctic_workers.control.server import ControlServer
from arctic_workers.control.state import StateBoard

KEY = Key("ArcticTraining", "team", "tiny")
ANSWER = CheckpointRequest(token="now", step=5, uri="file:///c/5")


def observation(build, phase=Phase.RUNNING, stop_after=""):
    return TrainingObservation(build.uid, 1, phase, "", None, stop_after=stop_after)


@pytest.mark.parametrize(
    ("fields", "phase", "stop_after", "told"),
    [
        ({}, Phase.RUNNING, "", []),
        ({"paused": True}, Phase.RUNNING, "", [Command("pause")]),
        ({"paused": True}, Phase.PAUSED, "", []),
        ({}, Phase.PAUSED, "", [Command("resume")]),
        ({"stopAfter": "general"}, Phase.RUNNING, "", [Command("stop_after", "general")]),
        ({"stopAfter": "general"}, Phase.RUNNING, "general", []),
        ({}, Phase.RUNNING, "general", [Command("stop_after", "")]),
        ({"paused": True, "stopAfter": "general"}, Phase.STARTING, "", []),
        ({"paused": True}, Phase.EXPORTING, "", []),
    ],
)
def test_a_world_is_told_what_it_does_not_do_yet_once_it_listens(build, fields, phase, stop_after, told):
    training = build.training(**fields)
    assert list(commands(training, observation(build, phase, stop_after), None)) == told


def test_a_request_is_told_until_it_is_answered_and_another_one_anew(build):
    asked = replace(build.training(), checkpoint_request="now")
    again = replace(build.training({"checkpointRequest": ANSWER.wire()}), checkpoint_request="later")
    seen = observation(build)
    assert commands(asked, seen, None) == (Command("checkpoint", "now"),)
    assert commands(asked, seen, ANSWER) == ()
    assert commands(replace(asked, status=again.status), seen, None) == ()
    assert commands(again, seen, ANSWER) == (Command("checkpoint", "later"),)


def test_the_answer_is_in_the_status_and_the_old_one_stays_until_then(build):
    asked = replace(build.training({"checkpointRequest": ANSWER.wire()}), checkpoint_request="later")
    later = CheckpointRequest(token="later", step=9, uri="file:///c/9")
    for answer, shown in ((None, ANSWER), (ANSWER, ANSWER), (later, later)):
        plan = plan_training(asked, TrainingSeen(answer=answer), build.settings, build.start)
        assert plan.status["checkpointRequest"] == shown.wire()


def test_a_world_that_is_not_heard_is_told_nothing(build):
    live = Live(observation(build), build.start, connected=False, error="gone")
    job = Job("tiny-a1", "job", 1, 1, "r1", created=build.start)
    seen = TrainingSeen(jobs=[job], pods=[build.pod(0), build.pod(1)], live=live)
    training = build.training({"attempt": 1}, paused=True)
    assert plan_training(training, seen, build.settings, build.start).commands == ()
    connected = replace(seen, live=replace(live, connected=True))
    assert plan_training(training, connected, build.settings, build.start).commands == (Command("pause"),)


class Worker(WorkerCommands):
    """A training's first pod: it pauses and resumes, has no stage `b`, and counts its checkpoints."""

    def __init__(self, board):
        self.board, self.checkpoints = board, 0

    def pause(self, timeout):
        self.board.publish(WorkerState(phase=PAUSED, training=TrainingState()))

    def stop_after(self, stage, timeout):
        if stage == "b":
            raise NotNow("There is no such stage.")
        self.board.publish(WorkerState(phase=RUNNING, training=TrainingState(stop_after=stage)))

    def checkpoint(self, timeout):
        self.checkpoints += 1
        return CheckpointReport(step=5, tokens=500, uri="file:///c/5", time="2026-01-02T03:04:05Z")


@pytest.fixture
def worker(build) -> Iterator[tuple[Worker, int]]:
    world = TrainingWorld(
        namespace="team",
        name="tiny",
        uid=build.uid,
        first_host="127.0.0.1",
        ports=Ports(control=0, metrics=0),
        tls_folder=None,
        spec=build.training().spec,
        attempt=1,
        epoch=1,
        run_folder="/run",
    )
    board = StateBoard(world)
    commands = Worker(board)
    with ControlServer(world, board, commands, ready=lambda: True) as server:
        yield commands, server.port


@pytest.fixture
async def followers(worker) -> AsyncIterator[Followers]:
    followers = Followers(lambda _: None)
    followers.follow((KEY, ""), f"127.0.0.1:{worker[1]}", "", None)
    yield followers
    await followers.close()


async def until(holds) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - a call that failed tells nobody
            await asyncio.sleep(0.01)


async def test_commands_reach_the_worker_and_its_answer_is_kept_for_that_object(build, worker, followers):
    answered: list[Key] = []
    told = Commands(followers, answered.append)
    told.send(KEY, build.uid, [Command("checkpoint", "now"), Command("pause"), Command("stop_after", "b")])
    told.send(KEY, build.uid, [Command("checkpoint", "now")])  # while it is under way: not told twice
    await until(lambda: len(answered) == 2 and not told.pending)
    assert worker[0].checkpoints == 1
    assert worker[0].board.latest.phase == PAUSED
    assert told.answer(KEY, build.uid) == ANSWER
    assert told.answer(KEY, "another uid") is None
    told.forget(KEY)
    assert told.answer(KEY, build.uid) is None


async def test_what_was_refused_is_told_again_when_it_is_sent_again(build, worker, followers):
    told = Commands(followers, lambda _: None)
    for stage in ("b", "general"):
        told.send(KEY, build.uid, [Command("stop_after", stage)])
        await until(lambda: not told.pending)
    assert worker[0].board.latest.training.stop_after == "general"
