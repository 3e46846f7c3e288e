"""A later pipeline rank of the native engine: does its share of each step until rank 0 ends the group."""

import logging
import os
import threading

from arctic_rpc.control_pb2 import DONE, RUNNING, STARTING, InferenceState
from arctic_workers.control.commands import Commands
from arctic_workers.inference.engines.native.group import bring_up
from arctic_workers.inference.engines.native.pipeline import Kind, follow
from arctic_workers.inference.engines.native.plan import Plan
from arctic_workers.inference.pod import Pod
from arctic_workers.inference.rendezvous import Heartbeats

log = logging.getLogger(__name__)


class Follower(Commands):
    """Serves from `run` until rank 0 says that the group ends: being told to stop itself, it tells rank 0."""

    def __init__(self, pod: Pod, plan: Plan) -> None:
        self._pod = pod
        self._plan = plan
        self._ready = False
        self._heartbeats: Heartbeats | None = None
        pod.ready = lambda: self._ready

    def stop(self, timeout: float) -> None:  # noqa: ARG002
        """See `Commands`."""
        self._pod.stop.request()

    def run(self) -> None:
        """Load, serve, and return when the group has ended in order. Raises Refused, PeerLost, RuntimeError."""
        pod, plan = self._pod, self._plan
        threading.Thread(target=self._pass_stop_on, name="stop", daemon=True).start()
        rank = bring_up(plan, pod.group, pod.rank, on_loss=pod.lose, on_stop=lambda: None, progress=self._load)
        self._heartbeats = rank.heartbeats
        assert rank.link is not None
        last = pod.rank == plan.ranks - 1
        for kind in follow(
            rank.runner, rank.link, last=last, hidden_size=plan.config.hidden_size, wire=plan.pipeline_format
        ):
            pod.heartbeat.beat()
            if kind is Kind.READY:
                self._ready = True
                pod.publish(RUNNING)
                log.info("Ready")
        if rank.heartbeats is not None:
            rank.heartbeats.stop()
        self._ready = False
        pod.publish(DONE)

    def _load(self, share: float) -> None:
        self._pod.publish(STARTING, InferenceState(loaded=share))

    def _pass_stop_on(self) -> None:
        self._pod.stop.requested.wait()
        if self._heartbeats is None:
            log.info("Stopped while loading")
            logging.shutdown()
            os._exit(0)
        log.info("Told to stop; rank 0 ends the group")
        self._heartbeats.request_stop()
