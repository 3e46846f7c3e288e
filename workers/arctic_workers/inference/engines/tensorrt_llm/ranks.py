"""All ranks of a group as pod 0 sees them: `mpirun`, and the leader somewhere below it, each a process to watch."""

import logging
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

from pydantic import ValidationError

from arctic_api.world import Report
from arctic_workers.inference.engines.tensorrt_llm.launch import Place

log = logging.getLogger(__name__)

KILLING = 10.0
"""Seconds that mpirun gets to end its ranks when it is told to."""


class Ranks:
    """Runs from its making until `end`."""

    def __init__(self, place: Place, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start them."""
        self._place = place
        self._leader: int | None = None
        self.asked = 0
        """How often the leader was told to end."""
        log.info("Starting all ranks: %s", " ".join(command))
        self._mpirun = subprocess.Popen(command, env=dict(environment), stdin=subprocess.DEVNULL)

    @property
    def code(self) -> int | None:
        """The exit code of mpirun, once it has ended."""
        return self._mpirun.poll()

    @property
    def begun(self) -> bool:
        """Whether the leader has said that it is there."""
        if self._leader is None:
            # The process may be gone since: that its report is missing then says enough.
            with suppress(FileNotFoundError, ProcessLookupError):
                self._leader = os.pidfd_open(int(self._place.leader.read_text()))
        return self._leader is not None

    @property
    def leaderless(self) -> bool:
        """Whether the leader was there and has ended."""
        return self.begun and self._leader is not None and bool(select.select([self._leader], [], [], 0)[0])

    def ask(self, times: int) -> None:
        """Let the leader have been sent SIGTERM so many times: a second one says that it is urgent."""
        while self.begun and self.asked < times:
            self.asked += 1
            self._signal_leader(signal.SIGTERM)

    def report(self) -> Report | None:
        """Return the leader's last word, if it had one."""
        try:
            return Report.model_validate_json(self._place.report.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def wait(self, patience: float) -> None:
        """Wait for mpirun to end by itself."""
        with suppress(subprocess.TimeoutExpired):
            self._mpirun.wait(patience)

    def end(self) -> None:
        """End what is left. mpirun ends the ranks of all pods; by force if it takes too long, and they notice."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.code is None:
                self._mpirun.send_signal(number)
                self.wait(KILLING)
        self._signal_leader(signal.SIGKILL)

    def _signal_leader(self, number: signal.Signals) -> None:
        if self.begun and self._leader is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._leader, number)
