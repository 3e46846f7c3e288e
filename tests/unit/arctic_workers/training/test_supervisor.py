import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arctic_api.training import ArcticTrainingSpec, TrainingParallelism
from arctic_api.world import NODE_RANK_VARIABLE, WORLD_VARIABLE, ExitCode, Ports, Report, TrainingWorld
from arctic_rpc.control_pb2 import TrainingState
from arctic_workers.control.link import LinkClient, LinkServer
from arctic_workers.control.probes import Heartbeat
from arctic_workers.control.signals import StopFlag
from arctic_workers.training import supervisor
from arctic_workers.training.outcome import OUTCOME_VARIABLE, read_outcomes, write_outcome
from arctic_workers.training.supervisor import (
    BadWorld,
    conclude,
    exit_code,
    launch_command,
    read_world,
    reap,
    with_progress,
)

pytestmark = pytest.mark.processes


@pytest.fixture
def world(spec_of: Callable[..., ArcticTrainingSpec], tmp_path: Path) -> TrainingWorld:
    return TrainingWorld(
        namespace="ns",
        name="t",
        uid="uid",
        first_host="127.0.0.1",
        ports=Ports(control=0, metrics=0, rendezvous=29999),
        tls_folder=None,
        termination_message=str(tmp_path / "termination-log"),
        spec=spec_of([{"tokens": 100, "sequenceLength": 16}], 16),
        attempt=3,
        epoch=3,
        run_folder=str(tmp_path / "run"),
    )


STOP_DURING_IMPORTS = """
import os, signal, sys
from importlib.abc import MetaPathFinder

class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "arctic_workers.training.supervisor":
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Finder())
"""


def report_of(outcome: Any, message: str = "") -> Report:
    return Report(outcome=outcome, message=message)


def environment_of(world: TrainingWorld, rank: str = "0", **changes: Any) -> dict[str, str]:
    content = world.model_dump(mode="json", by_alias=True) | changes
    return {WORLD_VARIABLE: json.dumps(content), NODE_RANK_VARIABLE: rank}


def test_the_world_is_read_from_the_environment(world: TrainingWorld) -> None:
    assert read_world(environment_of(world)) == (world, 0)


@pytest.mark.parametrize(
    ("rank", "changes", "says"),
    [
        ("1", {}, "must be a number below 1"),
        ("x", {}, "must be a number below 1"),
        ("0", {"firstHost": None}, "firstHost: Input should be a valid string"),
        ("0", {"epoch": 0}, "epoch: Input should be greater than or equal to 1"),
        ("0", {"spec": {}}, "spec.model: Field required"),
    ],
)
def test_a_bad_world_is_refused_with_the_field(
    world: TrainingWorld, rank: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadWorld, match=says):
        read_world(environment_of(world, rank, **changes))


@pytest.mark.parametrize("missing", [WORLD_VARIABLE, NODE_RANK_VARIABLE])
def test_a_missing_variable_is_named(world: TrainingWorld, missing: str) -> None:
    environment = environment_of(world)
    del environment[missing]
    with pytest.raises(BadWorld, match=missing):
        read_world(environment)


def test_ranks_are_started_by_a_static_rendezvous_without_restarts(world: TrainingWorld) -> None:
    command = launch_command(world, 0, Path("/logs"))
    assert {"--rdzv-backend=static", "--max-restarts=0", "--rdzv-endpoint=127.0.0.1:29999"} <= set(command)


def test_local_ranks_talk_over_loopback_and_what_the_pod_sets_wins(world: TrainingWorld) -> None:
    environment = supervisor.rank_environment(world, {"OMP_NUM_THREADS": "4"})
    assert (environment["OMP_NUM_THREADS"], environment["GLOO_SOCKET_IFNAME"]) == ("4", "lo")
    in_a_pod = world.model_copy(update={"tls_folder": "/etc/arctic/tls"})
    assert "GLOO_SOCKET_IFNAME" not in supervisor.rank_environment(in_a_pod, {})


@pytest.mark.parametrize(("quota", "spins"), [(True, str(supervisor.SPINS)), (False, "0")])
def test_threads_of_a_pod_spin_where_it_has_a_limit_on_cpu(
    world: TrainingWorld, monkeypatch: pytest.MonkeyPatch, quota: bool, spins: str
) -> None:
    assert supervisor.rank_environment(world, {})["GOMP_SPINCOUNT"] == str(supervisor.SPINS)
    monkeypatch.setattr(supervisor, "has_a_quota", lambda: quota)
    in_a_pod = world.model_copy(update={"tls_folder": "/etc/arctic/tls"})
    assert supervisor.rank_environment(in_a_pod, {})["GOMP_SPINCOUNT"] == spins


@pytest.mark.parametrize(
    ("nodes", "processes", "local", "threads"), [(1, 1, True, 8), (2, 2, True, 2), (2, 2, False, 4), (1, 9, True, 1)]
)
def test_ranks_share_out_the_cores_that_they_have_together(
    monkeypatch: pytest.MonkeyPatch, nodes: int, processes: int, local: bool, threads: int
) -> None:
    monkeypatch.setattr(supervisor, "available_cores", lambda: 8)
    parallelism = TrainingParallelism(nodes=nodes, processes_per_node=processes)
    assert supervisor.threads_of_a_rank(parallelism, {}, local=local) == str(threads)
    assert supervisor.threads_of_a_rank(parallelism, {"OMP_NUM_THREADS": "3"}, local=local) == "3"


@pytest.mark.parametrize(
    ("code", "stopped", "begun", "outcomes", "ends"),
    [
        (0, False, True, ["succeeded", "succeeded"], ExitCode.DONE),
        (0, True, True, ["interrupted", "interrupted"], ExitCode.INTERRUPTED),
        (0, False, True, ["interrupted"], ExitCode.INTERRUPTED),
        (1, False, False, ["refused"], ExitCode.BAD_INPUT),
        (1, False, True, ["failed", "refused"], ExitCode.BAD_INPUT),
        (1, False, True, ["failed"], 1),
        (1, True, True, ["interrupted", "failed"], 1),
        (1, False, True, ["succeeded"], 1),
        (0, False, True, [], 1),
        (-9, True, True, [], 1),
        (-9, False, False, [], 1),
        (-15, True, False, [], ExitCode.INTERRUPTED),
        (1, True, False, ["failed"], 1),
        (1, True, False, ["refused"], ExitCode.BAD_INPUT),
    ],
)
def test_the_pods_exit_code_is_what_its_ranks_say(
    world: TrainingWorld, code: int, stopped: bool, begun: bool, outcomes: list[str], ends: int
) -> None:
    reports = [report_of(outcome) for outcome in outcomes]
    assert exit_code(conclude(world, code, reports, stopped=stopped, begun=begun).outcome) == ends


def test_a_peer_that_is_gone_is_no_failure_of_a_pod_that_was_stopped_before_its_first_step(
    world: TrainingWorld,
) -> None:
    followed = Report(outcome="failed", reason="PeerLost", message="rank 0: Connection closed by peer")
    assert conclude(world, 1, [followed], stopped=True, begun=False).outcome == "interrupted"
    assert conclude(world, 1, [followed], stopped=True, begun=True) == followed


def test_the_cause_is_reported_rather_than_what_followed_from_it(world: TrainingWorld) -> None:
    followed = Report(outcome="failed", reason="PeerLost", message="rank 0: Connection closed by peer")
    cause = Report(outcome="failed", reason="TrainingFailed", message="rank 1: OSError: no space left")
    assert conclude(world, 1, [followed, cause], stopped=False, begun=True) == cause


def test_a_failure_says_how_far_the_run_was() -> None:
    failed = with_progress(report_of("failed"), TrainingState(step=7, tokens=70, loss=2.5))
    assert (failed.step, failed.tokens, failed.loss) == (7, 70, 2.5)
    refused = report_of("refused")
    assert with_progress(refused, TrainingState()) == refused


def test_outcomes_travel_by_files_in_the_order_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OUTCOME_VARIABLE, str(tmp_path))
    for rank in (11, 2):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        write_outcome(report_of("failed", f"rank {rank}"))
    assert [report.message for report in read_outcomes(tmp_path)] == ["rank 2", "rank 11"]


def test_orphans_are_reaped_and_the_ranks_exit_code_is_kept() -> None:
    orphan = subprocess.Popen(["true"])
    # Of a process that has ended, the folder is there until somebody takes it in.
    ranks = subprocess.Popen(["sh", "-c", f"while [ -e /proc/{orphan.pid} ]; do sleep 0.02; done; exit 7"])
    while (code := reap(ranks)) is None:
        time.sleep(0.02)
    assert code == 7
    assert not Path(f"/proc/{orphan.pid}").exists()
    orphan.returncode = 0  # its exit code went to reap()


def test_ranks_that_do_not_stop_within_the_grace_period_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "END_SECONDS", 1.0)  # a busy machine needs some to show that one is dead
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with (
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as ranks,
        LinkServer(on_state=lambda _: None) as link,
    ):
        assert ranks.stdout is not None
        ranks.stdout.readline()  # it ignores SIGTERM from here on
        link.begun = True
        stop = StopFlag()
        stop.request()
        heartbeat = Heartbeat(30)
        assert supervisor._watch(ranks, stop, heartbeat, 0.1, link) == -signal.SIGKILL
        assert heartbeat.alive()


def test_a_stop_reaches_the_ranks_over_the_link_and_not_as_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[str] = []
    with (
        LinkServer(on_state=lambda _: None) as link,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as ranks,
    ):
        monkeypatch.setenv(*next(iter(link.environment.items())))
        client = LinkClient.from_environment()
        assert client is not None
        client.begin()
        while not link.begun:
            time.sleep(0.02)
        assert ranks.stdin is not None
        stdin = ranks.stdin

        def be_a_rank() -> None:
            while not received:
                for command in client.poll():
                    received.append(command.name)
                    command.answer()
                time.sleep(0.02)
            stdin.write(b"\n")
            stdin.flush()

        thread = threading.Thread(target=be_a_rank)
        thread.start()
        stop = StopFlag()
        stop.request()
        assert supervisor._watch(ranks, stop, Heartbeat(30), 100, link) == 0
        thread.join()
        client.close()
    assert received == ["stop"]


def test_ranks_that_have_not_begun_to_train_are_ended_by_a_stop_at_once() -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as ranks,
        LinkServer(on_state=lambda _: None) as link,
    ):
        stop = StopFlag()
        stop.request()
        assert supervisor._watch(ranks, stop, Heartbeat(30), 1e9, link) == -signal.SIGTERM


def test_a_stop_before_the_ranks_are_started_starts_none(world: TrainingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "launch_command", lambda *_: pytest.fail("ranks were started"))
    stop = StopFlag()
    stop.request()
    unknown = world.model_copy(update={"first_host": "no-such-host.invalid"})
    report = supervisor.run(unknown, 0, stop)
    assert (report.outcome, report.epoch) == ("interrupted", 3)
    assert report.message == "stopped before this attempt's first step: nothing is lost"


def test_a_signal_during_the_imports_is_taken_as_a_stop(world: TrainingWorld, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(STOP_DURING_IMPORTS)
    done = subprocess.run(
        [sys.executable, "-m", "arctic_workers.training"],
        env=os.environ | environment_of(world) | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == ExitCode.INTERRUPTED, done.stderr[-3000:]


def test_a_bad_world_leaves_a_report_and_exits_with_bad_input(tmp_path: Path) -> None:
    program = (
        "import sys; from arctic_workers.training import supervisor;"
        "from arctic_workers.control.signals import StopFlag;"
        "supervisor.TERMINATION_MESSAGE = sys.argv[1]; sys.exit(supervisor.main(StopFlag()))"
    )
    path = tmp_path / "termination-log"
    environment = {key: value for key, value in os.environ.items() if key != WORLD_VARIABLE}
    done = subprocess.run([sys.executable, "-c", program, str(path)], env=environment, capture_output=True, check=False)
    assert done.returncode == ExitCode.BAD_INPUT, done.stderr
    report = Report.model_validate_json(path.read_text())
    assert (report.outcome, report.reason) == ("refused", "InvalidWorld")
    assert WORLD_VARIABLE in report.message


def test_a_refusal_of_the_ranks_ends_a_pod_with_bad_input(world: TrainingWorld) -> None:
    """The whole way: supervisor, torchrun, a rank under DeepSpeed that finds no source, report, exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "arctic_workers.training"],
        env=os.environ | environment_of(world),
        capture_output=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == ExitCode.BAD_INPUT, done.stderr[-3000:]
    report = Report.model_validate_json(Path(world.termination_message).read_text())
    assert (report.outcome, report.reason, report.epoch) == ("refused", "SourceNotFound", 3)


ASKS_A_POD_THAT_IS_GONE = """
import sys, threading, time
from datetime import timedelta
from runpy import run_module
from torch.distributed import TCPStore
from arctic_workers.training import supervisor

class Last:
    def __del__(self, sleep=time.sleep):
        sleep(3)  # the interpreter's end is under way when the store's answer fails

def main(stop):
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=1), wait_for_workers=False)
    threading.Thread(target=store.get, args=("never put",), daemon=True).start()
    sys.last = Last()
    return 75

supervisor.main = main
run_module("arctic_workers.training", run_name="__main__")
"""


def test_a_pod_ends_with_its_code_though_a_thread_still_asks_another() -> None:
    done = subprocess.run([sys.executable, "-c", ASKS_A_POD_THAT_IS_GONE], capture_output=True, check=False)
    assert done.returncode == 75, done.stderr
