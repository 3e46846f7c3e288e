"""PID 1 of a training pod: starts the ranks, lets the world talk to them, and turns their end into the pod's. No torch.

It keeps SIGTERM to itself. torchrun would answer it by killing the ranks; here it becomes a wish that reaches them over
the link, which all ranks of the world agree on at the end of their step. Before their first step they have nothing to
lose, and are ended at once.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from arctic_api import tracing
from arctic_api.common import parse_duration
from arctic_api.training import TrainingParallelism
from arctic_api.world import NODE_RANK_VARIABLE, TERMINATION_MESSAGE, Report, TrainingWorld
from arctic_rpc.control_pb2 import TrainingState
from arctic_workers.control.cores import available_cores, has_a_quota
from arctic_workers.control.link import LinkedCommands, LinkServer
from arctic_workers.control.logs import WITHOUT_LOGGER, configure_logs
from arctic_workers.control.memory import Memory
from arctic_workers.control.probes import Heartbeat, ProbeServer
from arctic_workers.control.report import FAILED, exit_code, write_report
from arctic_workers.control.server import ControlServer
from arctic_workers.control.signals import StopFlag
from arctic_workers.control.state import StateBoard
from arctic_workers.control.traces import begin_traces
from arctic_workers.control.world import BadWorld, read_told
from arctic_workers.training.journal import ATTEMPT_ENDED, EVENTS, JOURNAL, append_line
from arctic_workers.training.killed import RANKS_LOST, with_memory
from arctic_workers.training.metrics import TrainingCollector
from arctic_workers.training.outcome import OUTCOME_VARIABLE, PEER_LOST, read_outcomes
from arctic_workers.training.progress import now
from arctic_workers.training.report.page import write_page
from arctic_workers.training.traces import tell_attempt

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
HEARTBEAT_SECONDS = 30.0
GRACE_SHARE = 0.9
"""Part of the grace period that the ranks get for their last checkpoint; after the rest the kubelet kills."""
END_SECONDS = 10.0
"""Longest wait for ranks that were told to die."""
RESOLVE_SECONDS = 300.0
"""Longest wait for the name of the first pod to resolve."""
SPINS = 1000
"""Looks for the next work that take as long as it takes to wake a thread: some 50 microseconds."""
LAUNCHER_LOGS = "torchrun"
_MAKER = "a training's pod is made by the operator or by `arctic train`"


def main(stop: StopFlag) -> int:
    """Run this pod's part of a world to its end; return the exit code, after the report is written."""
    configure_logs(os.environ, WITHOUT_LOGGER)
    try:
        world, node_rank = read_world(os.environ)
    except BadWorld as error:
        return _end(Report(outcome="refused", reason="InvalidWorld", message=str(error)), TERMINATION_MESSAGE)
    begun = time.monotonic()
    if node_rank == 0:
        begin_traces("arctic-training", world, os.environ)
    try:
        report = run(world, node_rank, stop)
    except Exception as error:
        log.exception("The supervisor failed")
        report = _failure(world, "SupervisorFailed", f"{type(error).__name__}: {error}")
    code = _end(report, world.termination_message)
    if node_rank == 0:
        leave_page(world, report)
        tell_attempt(world, report, begun)
        tracing.end()
    return code


def _end(report: Report, path: str) -> int:
    write_report(report, path)
    log.info("%s: %s", report.outcome, report.message)
    return exit_code(report.outcome)


def leave_page(world: TrainingWorld, report: Report) -> None:
    """Write into the run's folder how the attempt ended, and the page of the run; for people, so it never fails."""
    folder = Path(world.locate(world.run_folder))
    if not (folder / JOURNAL).exists():
        return
    end = {"time": now(), "attempt": world.epoch, "kind": ATTEMPT_ENDED, "step": report.step}
    try:
        append_line(folder / EVENTS, end | {"reason": report.reason, "message": report.message})
        write_page(folder)
    except Exception:
        log.warning("The page of the run could not be written", exc_info=True)


def read_world(environment: Mapping[str, str]) -> tuple[TrainingWorld, int]:
    """Return the world and this pod's place in it; `BadWorld` says what is wrong."""
    world = read_told(environment, TrainingWorld, _MAKER)
    if NODE_RANK_VARIABLE not in environment:
        raise BadWorld(f"{NODE_RANK_VARIABLE} is not set: {_MAKER}")
    nodes = world.spec.parallelism.nodes
    text = environment[NODE_RANK_VARIABLE]
    if not text.isdigit() or int(text) >= nodes:
        raise BadWorld(f"{NODE_RANK_VARIABLE} is {text!r}: it must be a number below {nodes}")
    return world, int(text)


def run(world: TrainingWorld, node_rank: int, stop: StopFlag) -> Report:
    """Serve control and metrics, run the ranks to their end, and say how they ended."""
    board = StateBoard(world)
    heartbeat = Heartbeat(HEARTBEAT_SECONDS)
    registry = CollectorRegistry()
    for register in (ProcessCollector, PlatformCollector):
        register(registry=registry)
    if node_rank == 0:  # the run's figures once, not once a pod
        registry.register(TrainingCollector(world, lambda: board.latest))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="arctic-training-")))
        link = stack.enter_context(LinkServer(on_state=board.publish))
        commands = LinkedCommands(link, stop.request)
        stack.enter_context(ControlServer(world, board, commands, ready=lambda: link.connected))
        stack.enter_context(ProbeServer(world, registry, alive=heartbeat.alive, ready=lambda: link.connected))
        if not _wait_for_name(world.first_host, stop, heartbeat):
            return _failure(world, "HostUnknown", f"{world.first_host} does not resolve")
        if stop.requested.is_set():
            return _stopped_early(world)
        environment = rank_environment(world, os.environ) | link.environment | {OUTCOME_VARIABLE: str(folder)}
        memory = Memory.now()
        command = launch_command(world, node_rank, folder / LAUNCHER_LOGS)
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        code = _watch(process, stop, heartbeat, parse_duration(world.spec.checkpoint.grace_period), link)
        report = conclude(world, code, read_outcomes(folder), stopped=stop.requested.is_set(), begun=link.begun)
        return with_progress(with_memory(report, memory, Memory.now()), board.latest.training)


def launch_command(world: TrainingWorld, node_rank: int, logs: Path) -> Sequence[str]:
    """Return the command that starts this pod's ranks; in `logs` torchrun makes folders, which it leaves.

    The rendezvous is static: a dynamic one may give a pod other ranks than its place. Attempts are the operator's: no
    restarts here.
    """
    parallelism = world.spec.parallelism
    return (
        sys.executable,
        "-m",
        "arctic_workers.training.launch",
        f"--nnodes={parallelism.nodes}",
        f"--node-rank={node_rank}",
        f"--nproc-per-node={parallelism.processes_per_node}",
        "--rdzv-backend=static",
        f"--rdzv-endpoint={world.first_host}:{world.ports.rendezvous}",
        "--max-restarts=0",
        f"--log-dir={logs}",
        "-m",
        "arctic_workers.training.rank",
    )


def threads_of_a_rank(parallelism: TrainingParallelism, inherited: Mapping[str, str], *, local: bool) -> str:
    """Return how many threads a rank computes with, if its environment does not say it.

    Its share of its pod's cores, or of the machine's where all nodes are `local` processes.
    """
    ranks = parallelism.processes_per_node * (parallelism.nodes if local else 1)
    return inherited.get("OMP_NUM_THREADS", str(max(1, available_cores() // ranks)))


def _spins(world: TrainingWorld) -> int:
    """Return how often a thread looks for its next work before it sleeps.

    To be woken takes longer than most gaps of a step. But on cores where others compute too, who spins keeps the thread
    from running that it waits for: so only on cores of a world's own.
    """
    return SPINS if world.tls_folder is None or has_a_quota() else 0


def rank_environment(world: TrainingWorld, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the ranks, without what the link adds."""
    defaults = {
        "OMP_NUM_THREADS": threads_of_a_rank(world.spec.parallelism, inherited, local=world.tls_folder is None),
        "GOMP_SPINCOUNT": str(_spins(world)),
        # A step asks for what the one before gave back: from the kernel it would come page by page, filled with zeros.
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the most that glibc takes
        "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        # torch says that names which DeepSpeed uses will go: nothing for the reader of a training's log.
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }
    if world.tls_folder is None:  # local processes: nothing of theirs may be reached from elsewhere
        defaults["GLOO_SOCKET_IFNAME"] = "lo"
    return defaults | dict(inherited)


def _wait_for_name(host: str, stop: StopFlag, heartbeat: Heartbeat) -> bool:
    """Wait until a pod's name resolves: it does so shortly after the pod has started."""
    deadline = time.monotonic() + RESOLVE_SECONDS
    while not stop.requested.is_set() and time.monotonic() < deadline:
        heartbeat.beat()
        try:
            socket.getaddrinfo(host, None)
            return True
        except socket.gaierror:
            time.sleep(POLL_SECONDS)
    return stop.requested.is_set()


def _watch(
    process: "subprocess.Popen[bytes]", stop: StopFlag, heartbeat: Heartbeat, grace: float, link: LinkServer
) -> int:
    """Wait until the ranks have ended and return torchrun's exit code.

    Once a stop is asked for, the ranks are told, and get their share of the grace period: ranks that wait for a peer
    that is gone can't write a checkpoint, and are ended then. Ranks that have not begun to train are ended at once.
    """
    told: float | None = None
    while (code := reap(process)) is None:
        heartbeat.beat()
        if stop.requested.is_set() and not link.begun:
            log.info("asked to stop before the first step: the ranks are ended")
            return _end_process(process, heartbeat)
        if stop.requested.is_set() and told is None:
            told = time.monotonic()
            log.info("asked to stop: the ranks write a checkpoint at the end of their step")
            link.submit("stop")
        if told is not None and (stop.now.is_set() or time.monotonic() - told > grace * GRACE_SHARE):
            return _end_process(process, heartbeat)
        time.sleep(POLL_SECONDS)
    return code


def reap(process: "subprocess.Popen[bytes]") -> int | None:
    """Take in all children that have ended, orphans too (PID 1 must); return the process's exit code if it has one."""
    while process.returncode is None:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return process.poll()
        if pid == 0:
            return None
        if pid == process.pid:
            process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode


def _end_process(process: "subprocess.Popen[bytes]", heartbeat: Heartbeat) -> int:
    """End torchrun, which ends its ranks; by force if it takes too long (the ranks then die with it)."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        process.send_signal(number)
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            heartbeat.beat()
            if (code := reap(process)) is not None:
                return code or FAILED
            time.sleep(POLL_SECONDS)
    return FAILED


def conclude(world: TrainingWorld, code: int, outcomes: Sequence[Report], *, stopped: bool, begun: bool) -> Report:
    """Return how the pod ended, from torchrun's exit code and the reports that its ranks left (the first rank's first).

    A refusal of any rank is the pod's, then a failure, of which one that only follows from another rank's comes last.
    Without reports the ranks were killed: by a stop, if one was asked for before they had `begun` to train.
    """
    faults = [report for report in outcomes if report.outcome in ("refused", "failed")]
    causes = [report for report in faults if report.reason != PEER_LOST]
    if causes:
        return min(causes, key=lambda report: report.outcome != "refused")
    if code == 0 and outcomes:
        return outcomes[0]
    if stopped and not begun:
        return _stopped_early(world)
    if faults:
        return faults[0]
    if stopped:
        return _failure(world, "StopTimedOut", "the ranks wrote no checkpoint within the grace period, and were ended")
    return _failure(world, RANKS_LOST, f"the ranks ended without a report (torchrun's exit code is {code})")


def with_progress(report: Report, latest: TrainingState) -> Report:
    """Return a report that says how far the run was, if the ranks ended without saying so."""
    if report.step or not latest.step:
        return report
    return report.model_copy(update={"step": latest.step, "tokens": latest.tokens, "loss": latest.loss})


def _stopped_early(world: TrainingWorld) -> Report:
    message = "stopped before this attempt's first step: nothing is lost"
    return Report(outcome="interrupted", reason="Interrupted", message=message, epoch=world.epoch)


def _failure(world: TrainingWorld, reason: str, message: str) -> Report:
    return Report(outcome="failed", reason=reason, message=message, epoch=world.epoch)
