"""A later pipeline rank of vLLM: holds the ranks of its pod, which the leader's engine asks, until the group ends."""

import logging
import os
import threading
import time
from typing import Any

from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from arctic_rpc.control_pb2 import DONE, RUNNING, STARTING, InferenceState
from arctic_workers.control.commands import Commands
from arctic_workers.inference.engine import EngineError
from arctic_workers.inference.engines.vllm.launch import configure
from arctic_workers.inference.engines.vllm.peers import POLL, Peers, Phase, meet_peers
from arctic_workers.inference.pod import Pod

log = logging.getLogger(__name__)


class Follower(Commands):
    """Serves from `run` until the leader says that the group ends: being told to stop itself, it tells the leader."""

    def __init__(self, pod: Pod, arguments: dict[str, Any]) -> None:
        self._pod = pod
        self._arguments = arguments
        self._ready = False
        self._peers: Peers | None = None
        pod.ready = lambda: self._ready

    def stop(self, timeout: float) -> None:  # noqa: ARG002
        """See `Commands`."""
        self._pod.stop.request()

    def run(self) -> None:
        """Load, serve, and return when the group has ended in order. Raises Refused, EngineError, RuntimeError."""
        pod = self._pod
        threading.Thread(target=self._pass_stop_on, name="stop", daemon=True).start()
        pod.publish(STARTING, InferenceState(loaded=0.0))
        config = configure(self._arguments, headless=True)
        self._peers = meet_peers(pod.group, pod.rank, on_loss=pod.lose, on_stop=lambda: None)
        try:
            executor = MultiprocExecutor(config, monitor_workers=False)
        except Exception as error:
            raise EngineError(f"vLLM's ranks of this pod did not start; the log says why ({error})") from error
        executor.register_failure_callback(lambda: pod.lose("a rank of this pod ended; the log says why"))
        executor.start_worker_monitor()
        pod.publish(STARTING, InferenceState(loaded=1.0))
        self._follow(self._peers)
        self._ready = False
        executor.shutdown()
        self._peers.say_goodbye()
        pod.publish(DONE)

    def _follow(self, peers: Peers) -> None:
        while (phase := peers.phase()) is not Phase.ENDING:
            self._pod.heartbeat.beat()
            if phase is Phase.READY and not self._ready:
                self._ready = True
                self._pod.publish(RUNNING)
                log.info("Ready")
            time.sleep(POLL)

    def _pass_stop_on(self) -> None:
        self._pod.stop.requested.wait()
        if self._peers is None:
            log.info("Stopped while loading")
            logging.shutdown()
            os._exit(0)
        log.info("Told to stop; the leader ends the group")
        self._peers.request_stop()
