"""Pod 0 of a group, PID 1 there: meets the later pods, starts all ranks, and turns their end into the pod's.

The leader is the process that rank 0's launcher starts: it serves HTTP, probes and control, with `mpirun` and a shell
between it and this one. So SIGTERM is sent on to it alone: mpirun would kill the ranks under the requests that are
left. Neither mpirun nor the launcher notices the end of a leader that failed: that is seen here.
"""

import http.client
import logging
import sys
import time
from collections.abc import Mapping

from arctic_workers.control.commands import Commands, NotNow
from arctic_workers.inference.engine import EngineError, Refused
from arctic_workers.inference.engines.tensorrt_llm.launch import (
    Place,
    leader_environment,
    link_command,
    mpirun_command,
)
from arctic_workers.inference.engines.tensorrt_llm.link import FromFirst, Link
from arctic_workers.inference.engines.tensorrt_llm.login import find_program, write_login
from arctic_workers.inference.engines.tensorrt_llm.ranks import Ranks
from arctic_workers.inference.pod import Pod

log = logging.getLogger(__name__)

PROGRAMS = {"mpirun": "Open MPI 4.1", "trtllm-llmapi-launch": "TensorRT-LLM 1.2.1"}
"""What starts the ranks, and what brings it."""
MEETING = 1800.0
"""Seconds to wait for the later pods: those of a group may be scheduled, and images pulled, at different times."""
STARTING = 300.0
"""Seconds from mpirun's start to the leader's."""
ENDING = 20.0
"""Seconds that mpirun gets to end after the leader has: its ranks give their GPUs back."""
GOODBYE = 5.0
"""Seconds that later pods get to hang up once they have heard that the group ends."""
_RETRY = 1.0
_LOOK = 0.5
_POLL = 0.2


class FirstPod(Commands):
    """Serves from `run` until the leader has ended the group."""

    def __init__(self, pod: Pod, place: Place) -> None:
        self._pod = pod
        self._place = place
        self._links: list[Link] = []
        self._word: FromFirst = "waiting"

    def drain(self, timeout: float) -> None:  # noqa: ARG002
        """See `Commands`."""
        raise NotNow("The group has not met yet, so there is nothing to drain.")

    def stop(self, timeout: float) -> None:  # noqa: ARG002
        """See `Commands`."""
        self._pod.stop.request()

    def run(self, environment: Mapping[str, str]) -> None:
        """Serve, and return when the group has ended in order. Raises Refused, EngineError, OSError."""
        group, place = self._pod.group, self._place
        for program, package in PROGRAMS.items():
            find_program(program, package)
        if group.login_folder is not None:
            find_program("ssh", "openssh-client")
            write_login(place, group, group.login_folder)
        try:
            # The leader listens on the same ports, so these are given up before it starts.
            with self._pod.controlled(self):
                met = self._meet()
            if met:
                ranks = Ranks(
                    place, mpirun_command(group, place, sys.executable), leader_environment(group, place, environment)
                )
                try:
                    self._follow(ranks)
                finally:
                    ranks.end()
            self._tell("done")
            for link in self._links:
                link.close(GOODBYE)
        finally:
            for link in self._links:
                link.close()

    def _meet(self) -> bool:
        """Open the line to each later pod; False if told to stop before all were there. Raises EngineError."""
        deadline = time.monotonic() + MEETING
        for host in self._pod.group.hosts[1:]:
            complaint = None
            while not self._connect(host):
                if self._pod.stop.requested.is_set():
                    log.info("Stopped before the group had met")
                    return False
                link = self._links.pop()
                link.close()
                if link.complaint != complaint:
                    complaint = link.complaint
                    log.info("Waiting for %s: %s", host, complaint)
                if time.monotonic() > deadline:
                    raise EngineError(f"{host} did not come within {MEETING / 60:.0f} minutes: {complaint}")
                time.sleep(_RETRY)
        log.info("All pods of the group are there")
        return True

    def _connect(self, host: str) -> bool:
        """Try once; what comes of it is the last of the links."""
        link = Link(host, link_command(self._place, host))
        self._links.append(link)
        while not link.lost.is_set() and not self._pod.stop.requested.is_set():
            if link.here.wait(_POLL):
                return True
        return False

    def _follow(self, ranks: Ranks) -> None:
        """Return when the ranks have ended in order. Raises Refused, EngineError."""
        begin = time.monotonic()
        while ranks.code is None and not ranks.leaderless:
            for link in self._links:
                if link.lost.is_set():
                    raise EngineError(f"the connection to {link.host} broke")
            stopping = self._pod.stop.requested.is_set() or any(link.stop.is_set() for link in self._links)
            if not ranks.begun:
                if stopping:
                    log.info("Stopped while the ranks started")
                    return
                if time.monotonic() - begin > STARTING:
                    raise EngineError(f"the leader did not start within {STARTING:.0f} s of mpirun; see the log")
            ranks.ask(int(stopping) + self._pod.stop.now.is_set())
            self._tell("ready" if self._answers() else "waiting")
            time.sleep(_LOOK)
        self._conclude(ranks)

    def _conclude(self, ranks: Ranks) -> None:
        report = ranks.report()
        if report is None:
            how = "the leader was killed" if ranks.code is None else f"mpirun ended with code {ranks.code}"
            raise EngineError(f"the group is broken: {how}; see the log")
        if report.outcome == "refused":
            raise Refused(report.message)
        if report.outcome == "failed":
            raise EngineError(report.message)
        ranks.wait(ENDING)
        if ranks.code and not ranks.asked:
            raise EngineError(f"the group is broken: mpirun ended with code {ranks.code}; see the log")

    def _answers(self) -> bool:
        """Whether the leader says that the whole group is ready."""
        connection = http.client.HTTPConnection("127.0.0.1", self._pod.group.ports.metrics, timeout=_RETRY)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _tell(self, word: FromFirst) -> None:
        """Tell the later pods, if it is news."""
        if word != self._word:
            self._word = word
            for link in self._links:
                link.tell(word)
