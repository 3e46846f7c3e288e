import asyncio
import threading

from arctic_api.world import InferenceGroup, TrainingWorld
from arctic_rpc.control_pb2 import CHECKPOINTING, RUNNING, STARTING, InferenceState, TrainingState, WorkerState
from arctic_workers.control.state import StateBoard


async def collect(board: StateBoard, pause: float = 0.0) -> list[WorkerState]:
    return [state async for state in board.watch(pause)]


def training(step: int) -> WorkerState:
    return WorkerState(phase=RUNNING, training=TrainingState(step=step))


def test_a_training_begins_as_starting_under_its_identity(training_world: TrainingWorld) -> None:
    state = StateBoard(training_world).latest
    assert (state.phase, state.uid, state.epoch) == (STARTING, training_world.uid, 3)
    assert state.WhichOneof("detail") == "training"
    assert state.HasField("time")


def test_an_inference_begins_as_starting_without_an_epoch(group: InferenceGroup) -> None:
    state = StateBoard(group).latest
    assert (state.phase, state.uid, state.epoch) == (STARTING, group.uid, 0)
    assert state.WhichOneof("detail") == "inference"


def test_a_published_state_is_copied_and_gets_identity_and_time(training_world: TrainingWorld) -> None:
    board = StateBoard(training_world)
    mine = training(1)
    board.publish(mine)
    mine.training.step = 99
    assert (board.latest.training.step, board.latest.uid, board.latest.epoch) == (1, training_world.uid, 3)
    assert board.latest.HasField("time")
    assert not mine.HasField("time")


def test_a_state_without_figures_keeps_those_of_the_one_before(training_world: TrainingWorld) -> None:
    board = StateBoard(training_world)
    board.publish(training(7))
    board.publish(WorkerState(phase=CHECKPOINTING))
    assert (board.latest.phase, board.latest.training.step) == (CHECKPOINTING, 7)


async def test_a_watcher_gets_the_state_now_and_each_change(training_world: TrainingWorld) -> None:
    board = StateBoard(training_world)
    watch = board.watch(0.0)
    assert (await anext(watch)).training.step == 0
    for step in (1, 2):
        board.publish(training(step))
        assert (await anext(watch)).training.step == step
    await watch.aclose()


async def test_a_state_that_is_new_in_its_time_only_is_no_change(group: InferenceGroup) -> None:
    board = StateBoard(group)
    state = WorkerState(phase=RUNNING, inference=InferenceState(ready=True))
    watching = asyncio.create_task(collect(board))
    for _ in range(5):
        board.publish(state)
        await asyncio.sleep(0.01)
    board.publish(WorkerState(phase=RUNNING, inference=InferenceState(ready=True, running=1)))
    await asyncio.sleep(0.01)
    board.close()
    seen = [(state.inference.ready, state.inference.running) for state in await watching]
    assert [pair for index, pair in enumerate(seen[:-1]) if pair != seen[index + 1]] + seen[-1:] == [
        (True, 0),
        (True, 1),
    ]
    assert seen.count((True, 0)) == 1


async def test_a_burst_reaches_a_watcher_as_its_last_state(training_world: TrainingWorld) -> None:
    board = StateBoard(training_world)
    watching = asyncio.create_task(collect(board, pause=60.0))
    await asyncio.sleep(0)
    for step in range(1, 101):
        board.publish(training(step))
    await asyncio.sleep(0)
    board.close()
    assert [state.training.step for state in await watching] == [0, 100]


async def test_closing_ends_every_watcher_and_those_to_come(training_world: TrainingWorld) -> None:
    board = StateBoard(training_world)
    watchers = [asyncio.create_task(collect(board, pause=60.0)) for _ in range(3)]
    await asyncio.sleep(0)
    board.close()
    await asyncio.gather(*watchers)
    assert [state.phase for state in await collect(board, pause=60.0)] == [STARTING]


async def test_no_state_is_lost_between_threads(training_world: TrainingWorld) -> None:
    board = StateBoard(training_world)
    watching = asyncio.create_task(collect(board))

    def publish(thread: int) -> None:
        for step in range(200):
            board.publish(training(1000 * thread + step))

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    await asyncio.to_thread(lambda: [thread.join() for thread in threads])
    board.close()
    assert (await watching)[-1] == board.latest
