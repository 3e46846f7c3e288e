"""The watchdog over real processes: one waits, its peer is stopped, or stuck, or slow."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import Report, TrainingWorld
from arctic_workers.training.hang import board
from arctic_workers.training.hang.pulse import pulse_path
from arctic_workers.training.hang.watchdog import Watchdog
from arctic_workers.training.outcome import read_outcomes

pytestmark = pytest.mark.processes

LEAST = 0.5
LONG = 120.0
SCRIPT = Path(__file__).with_name("stand_in_rank.py")
Ranks = list["subprocess.Popen[bytes]"]


@contextmanager
def ranks(folders: list[Path], store: str, *kinds: tuple[str, int]) -> Iterator[Ranks]:
    """Start a rank for each kind (what it does, collectives launched), rank by rank in the folders of their pods."""
    address, port = store.split(":")
    each = len(kinds) // len(folders)
    processes: Ranks = []
    for rank, (what, launched) in enumerate(kinds):
        place = {"LOCAL_RANK": str(rank % each), "MASTER_ADDR": address, "MASTER_PORT": port}
        command = [sys.executable, str(SCRIPT), str(folders[rank // each]), str(rank), what, str(launched)]
        processes.append(subprocess.Popen(command, env=os.environ | place))
    try:
        for rank in range(len(kinds)):
            while not pulse_path(folders[rank // each], rank % each).exists():
                time.sleep(0.02)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture
def world_of(spec_of: Callable[..., ArcticTrainingSpec], tmp_path: Path) -> Callable[..., TrainingWorld]:
    def made(nodes: int, each: int) -> TrainingWorld:
        spec = spec_of([{"tokens": 100, "sequenceLength": 16}], 16)
        degrees = spec.parallelism.model_copy(update={"nodes": nodes, "processes_per_node": each})
        return TrainingWorld(
            namespace="ns",
            name="t",
            uid="uid",
            first_host="127.0.0.1",
            spec=spec.model_copy(update={"parallelism": degrees}),
            attempt=3,
            epoch=3,
            run_folder=str(tmp_path / "run"),
        )

    return made


def watching(world: TrainingWorld, folders: list[Path]) -> list[threading.Thread]:
    dogs = [Watchdog(world, node, folder, LEAST) for node, folder in enumerate(folders)]
    threads = [threading.Thread(target=dog.watch, daemon=True) for dog in dogs]
    for thread in threads:
        thread.start()
    return threads


def test_a_rank_that_computes_is_left_alone_until_it_is_stopped(
    world_of: Callable[..., TrainingWorld], tmp_path: Path
) -> None:
    with ranks([tmp_path], "127.0.0.1:1", ("waits", 5), ("computes", 4)) as (waiting, slow):
        [thread] = watching(world_of(1, 2), [tmp_path])
        thread.join(3 * LEAST)
        assert thread.is_alive()
        assert read_outcomes(tmp_path) == []
        slow.send_signal(signal.SIGSTOP)
        thread.join(LONG)
        [report] = read_outcomes(tmp_path)
        assert (waiting.wait(LONG), slow.wait(LONG)) == (-signal.SIGKILL, -signal.SIGKILL)
    assert (report.outcome, report.reason, report.epoch) == ("failed", "RankHung", 3)
    assert f"rank 1 on pod 0 ({os.uname().nodename}) is hung at step 3: its process is stopped" in report.message
    assert "rank 0 waits for it" in report.message
    assert 'stand_in_rank.py", line' in report.message
    kept = tmp_path / "run" / "hung" / "attempt-3-rank-1.txt"
    assert str(kept) in report.message
    assert "in <module>" in kept.read_text()


def test_a_rank_that_is_stuck_is_named_by_its_own_pod_and_by_all_others(
    world_of: Callable[..., TrainingWorld], tmp_path: Path
) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    with ranks(folders, f"127.0.0.1:{store.port}", ("waits", 5), ("waits", 4)):
        for thread in watching(world_of(2, 1), folders):
            thread.join(LONG)
        [own], [other] = (read_outcomes(folder) for folder in folders)
    assert own == other == Report.model_validate(own.wire())
    assert own.message.startswith("rank 1 on pod 1 (")
    assert "nothing in its process runs" in own.message
    assert "in wait_for_what_never_comes" in own.message


def test_a_pod_that_says_nothing_any_more_is_named_by_those_that_wait_for_it(
    world_of: Callable[..., TrainingWorld], tmp_path: Path
) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with ranks([tmp_path], f"127.0.0.1:{store.port}", ("waits", 5)):
        store.set(
            "arctic/pulse/1",
            '{"number": 4, "pod": "other", "hung": null, "ranks": [{"rank": 1, "step": 3, "in_step": true, '
            '"groups": {"all": 4}, "unmoved": 0.0, "stopped": false}]}',
        )
        [thread] = watching(world_of(2, 1), [tmp_path])
        thread.join(LONG)
        [report] = read_outcomes(tmp_path)
    assert report.message.startswith("pod 1 (other) with ranks 1 has said nothing for ")


def test_the_pod_of_a_store_that_never_answers_is_named(
    world_of: Callable[..., TrainingWorld], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "ANSWER_SECONDS", 0.3)
    with ranks([tmp_path], "127.0.0.1:9", ("waits", 5)):
        dog = Watchdog(world_of(2, 1), 1, tmp_path, LEAST)
        thread = threading.Thread(target=dog.watch, daemon=True)
        thread.start()
        thread.join(LONG)
        [report] = read_outcomes(tmp_path)
        assert dog._board is not None
        assert dog._board._call is not None
        dog._board._call.join()  # a thread that comes out of torch while Python ends aborts the process
    assert report.message.startswith("pod 0 (127.0.0.1) with ranks unknown has said nothing for ")
