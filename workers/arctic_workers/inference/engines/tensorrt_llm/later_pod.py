"""A later pod of a group: lets pod 0 in to start ranks here, and ends with it. PID 1 of its container."""

import logging
import subprocess
import threading
import time
from collections.abc import Mapping

from arctic_rpc.control_pb2 import DONE, RUNNING, STARTING
from arctic_workers.control.commands import Commands
from arctic_workers.inference.engine import EngineError
from arctic_workers.inference.engines.tensorrt_llm.launch import Place, server_command
from arctic_workers.inference.engines.tensorrt_llm.link import LinkEnd
from arctic_workers.inference.engines.tensorrt_llm.login import find_program, write_login, write_server
from arctic_workers.inference.pod import Pod

log = logging.getLogger(__name__)

_POLL = 0.2


class LaterPod(Commands):
    """Serves from `run` until pod 0 says that the group ends: being told to stop itself, it tells pod 0."""

    def __init__(self, pod: Pod, place: Place) -> None:
        self._pod = pod
        self._place = place
        self._ready = False
        self._done = threading.Event()
        self._told = False
        pod.ready = lambda: self._ready

    def stop(self, timeout: float) -> None:  # noqa: ARG002
        """See `Commands`."""
        self._pod.stop.request()

    def run(self, login_folder: str, environment: Mapping[str, str]) -> None:
        """Serve, and return when the group has ended in order. Raises Refused, EngineError."""
        place = self._place
        program = find_program("sshd", "openssh-server")
        write_login(place, self._pod.group, login_folder)
        write_server(place, self._pod.group, environment)
        end = LinkEnd(place.link, self._hear)
        sshd = subprocess.Popen(server_command(place, program))
        try:
            log.info("Waiting for pod 0 to log in on port %d", self._pod.group.ports.login)
            while not self._done.is_set():
                self._pod.heartbeat.beat()
                if sshd.poll() is not None:
                    raise EngineError(f"sshd ended with code {sshd.returncode}; its log says why")
                if end.lost.is_set() and not self._done.is_set():
                    raise EngineError("the connection to pod 0 broke")
                if self._pod.stop.requested.is_set() and self._pass_stop_on(end):
                    return
                time.sleep(_POLL)
        finally:
            self._ready = False
            sshd.terminate()
            sshd.wait()
        self._pod.publish(DONE)

    def _pass_stop_on(self, end: LinkEnd) -> bool:
        """Tell pod 0, which ends the group; True if there is nobody to tell."""
        if not end.met.is_set():
            log.info("Stopped before pod 0 came")
            return True
        if not self._told:
            self._told = True
            log.info("Told to stop; pod 0 ends the group")
            end.tell("stop")
        return False

    def _hear(self, word: str) -> None:
        if word == "done":
            self._done.set()
            return
        self._ready = word == "ready"
        self._pod.publish(RUNNING if self._ready else STARTING)
        log.info("Ready" if self._ready else "Not ready")
