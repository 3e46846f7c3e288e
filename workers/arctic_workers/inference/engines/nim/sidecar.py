"""Control, readiness and drain beside NVIDIA's container: looks at the NIM once a second, and says what it does."""

import logging
import threading
import time

from arctic_api.common import parse_duration
from arctic_rpc.control_pb2 import DONE, DRAINING, RUNNING, STARTING, InferenceState, Phase
from arctic_workers.control.commands import Commands, NotNow
from arctic_workers.inference.engines.nim.client import Down, Nim, Silent
from arctic_workers.inference.engines.nim.metrics import Figures, History, read
from arctic_workers.inference.pod import LINGER, Pod

log = logging.getLogger(__name__)

POLL = 1.0
"""Seconds between two looks."""
MISSES = 3
"""So many looks in a row that find it silent or unready make it unready."""
IDLE_LOOKS = 2
"""So many looks in a row must find no request before the container may end: the last bytes leave in between."""


class Sidecar(Commands):
    """Serves from `run` until it is told to stop, which the kubelet does once NVIDIA's container has ended."""

    def __init__(self, pod: Pod, nim: Nim) -> None:
        self.figures: Figures | None = None
        """What the NIM told last; None while it can't be heard."""
        self._pod = pod
        self._nim = nim
        self._history = History()
        self._ready = False
        self._served = False
        """Whether this container has been ready: requests may be in it, whether it still answers or not."""
        self._misses = 0
        self._idle_looks = 0
        self._draining_since: float | None = None
        self._ending = False
        self._looked = threading.Condition()
        self._drain_timeout = parse_duration(pod.group.spec.rollout.drain_timeout)
        # A pod that ends is for the gateway to leave out. A drain over gRPC changes nothing: the operator has taken the
        # leader out of the routing before, and deletes at once what drains and is not ready.
        pod.ready = lambda: self._ready and not self._ending

    def drain(self, timeout: float) -> None:  # noqa: ARG002
        """See `Commands`."""
        if not self._ready:
            raise NotNow("The NIM is not ready, so there is nothing to drain.")
        self._begin_draining()

    def drained(self) -> bool:
        """Take no new requests, and return when none is left; False if some are after the manifest's drain timeout.

        The kubelet asks for it before it stops NVIDIA's container, because the pod ends or the container is to restart.
        """
        self._ending = True
        self._begin_draining()
        with self._looked:
            done = self._looked.wait_for(self._is_drained, LINGER + self._drain_timeout)
        if not done:
            log.warning("Requests are left that did not end in time; they are cut off")
        return done

    def run(self) -> None:
        """Look and tell until told to stop. Raises Refused if the NIM refuses what it is there for."""
        while not self._pod.stop.requested.wait(POLL):
            self._look()
            with self._looked:
                self._looked.notify_all()
            self._pod.heartbeat.beat()
            self._pod.publish(self._phase(), self._state())
        self._ready = False
        self._pod.publish(DONE, self._state())

    def _begin_draining(self) -> None:
        if self._draining_since is None:
            log.info("Draining")
            self._draining_since, self._idle_looks = time.monotonic(), 0

    def _lingers(self) -> bool:
        return self._draining_since is not None and time.monotonic() - self._draining_since < LINGER

    def _is_drained(self) -> bool:
        """Whether nothing is cut off when the container ends now."""
        return not self._served or self._idle_looks >= IDLE_LOOKS

    def _look(self) -> None:
        try:
            self._misses = 0 if self._nim.healthy() else self._misses + 1
            self._read_figures()
            if not self._misses and not self._ready and not self._ending:
                self._nim.complete()
                self._ready = self._served = True
                log.info("Ready")
        except Down:
            self._forget()
        except Silent as error:
            log.warning("The NIM does not answer: %s", error)
            self._misses += 1
            self.figures, self._idle_looks = None, 0
        if self._ready and self._misses >= MISSES:
            log.error("The NIM is not ready any more")
            self._ready = False

    def _read_figures(self) -> None:
        try:
            figures = read(self._nim.metrics())
        except (Silent, ValueError) as error:
            log.warning("The NIM's metrics can't be read: %s", error)
            self.figures, self._idle_looks = None, 0
            return
        if self._history.add(figures):  # it ended and began between two looks
            self._forget()
        self.figures = figures
        self._idle_looks = self._idle_looks + 1 if figures.idle and not self._lingers() else 0

    def _forget(self) -> None:
        """The container is gone. When the kubelet starts it again it is to serve again, whatever its end was for."""
        if self._ready:
            log.error("The NIM has ended")
        self._ready = self._served = self._ending = False
        self._draining_since, self.figures = None, None

    def _phase(self) -> Phase:
        if self._draining_since is not None:
            return DRAINING
        return RUNNING if self._ready else STARTING

    def _state(self) -> InferenceState:
        figures = self.figures or Figures()
        # Requests that can't be counted are not none: a group that drains would go at once.
        unknown = int(self._served and figures.running is None)
        return InferenceState(
            ready=self._pod.ready(),
            draining=self._draining_since is not None,
            running=int(figures.running or unknown),
            waiting=int(figures.waiting or 0),
            kv_cache_utilization=figures.cache or 0.0,
            tokens_per_second=self._history.tokens_per_second(),
            requests_per_second=self._history.requests_per_second(),
            ttft_p99_seconds=self._history.ttft_p99(),
            loaded=1.0,  # a NIM does not tell what share it has loaded, and of a whole one nobody speaks
        )
