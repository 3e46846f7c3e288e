"""What every pod of a group has, whatever its rank: probes, control, signals, and a way to end at once."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry

from arctic_api.world import GROUP_BROKEN, InferenceGroup, Report
from arctic_rpc.control_pb2 import InferenceState, Phase, WorkerState
from arctic_workers.control.commands import Commands
from arctic_workers.control.probes import Heartbeat, ProbeServer
from arctic_workers.control.report import write_report
from arctic_workers.control.server import ControlServer
from arctic_workers.control.signals import StopFlag
from arctic_workers.control.state import StateBoard

log = logging.getLogger(__name__)

FAILED = 1
"""Exit code of a failure, which the operator answers by remaking the group."""
LINGER = 4.0
"""Seconds that a leader goes on serving all that comes once it drains: more than the two checks of the gateway, one a
second, after which it sends nothing here any more."""
STEP_LIMIT = 300.0
"""Seconds without a turn of the main loop after which it counts as hung."""


class Pod:
    """One pod; made on the main thread, whose signals it takes over."""

    def __init__(self, group: InferenceGroup, rank: int) -> None:
        self.group = group
        self.rank = rank
        self.stop = StopFlag().install()
        self.heartbeat = Heartbeat(STEP_LIMIT)
        self.registry = CollectorRegistry()
        self.ready: Callable[[], bool] = lambda: False
        """Whether the whole group has loaded, a real pass went through it, and nobody told it to stop."""
        self._board = StateBoard(group)
        self._ending = threading.Lock()

    @contextmanager
    def controlled(self, commands: Commands, hooks: Mapping[str, Callable[[], bool]] | None = None) -> Iterator[None]:
        """Serve probes, metrics, control and hooks (see `ProbeServer`). TLSFolderError or OSError if that can't be."""

        def alive() -> bool:
            # Loading beats no heart, and how long it takes is not for us to say; an end has a time limit of its own.
            return not self.ready() or self.heartbeat.alive()

        def ready() -> bool:
            return self.ready()

        with (
            ProbeServer(self.group, self.registry, alive=alive, ready=ready, hooks=hooks),
            ControlServer(self.group, self._board, commands, ready),
        ):
            yield

    def publish(self, phase: Phase, state: InferenceState | None = None) -> None:
        """Tell the operator."""
        self._board.publish(WorkerState(phase=phase, inference=state or InferenceState(ready=self.ready())))

    def lose(self, sentence: str) -> None:
        """End this process now, from any thread: the group is broken, and whoever waits for a peer waits forever."""
        with self._ending:  # never left: one thread ends the process, the others wait for it
            log.error("The group is broken: %s", sentence)
            report = Report(outcome="failed", reason=GROUP_BROKEN, message=sentence)
            write_report(report, self.group.termination_message)
            logging.shutdown()
            os._exit(FAILED)
