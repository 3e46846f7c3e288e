"""What the pods of a group tell each other besides what vLLM does: that they live, when all are ready, and the end.

vLLM's own processes watch only those of the same pod.
"""

import time
from collections.abc import Callable
from enum import IntEnum

from torch.distributed import Store  # type: ignore[attr-defined]

from arctic_api.world import InferenceGroup
from arctic_workers.inference.rendezvous import Heartbeats, meet

POLL = 0.5
"""Seconds between two looks at what the leader says."""
LAST_WORDS = 20.0
"""Seconds that the leader waits for the others' ends: the store is gone with it."""
_PHASE = "phase"
_ENDED = "ended"


class Phase(IntEnum):
    """Where the leader says that the group is."""

    LOADING = 0
    READY = 1
    """A real pass has gone through all ranks."""
    ENDING = 2


class Peers:
    """One pod's view of the others. RuntimeError where the connection to the leader broke."""

    def __init__(self, store: Store, heartbeats: Heartbeats, others: int) -> None:
        self._store = store
        self._heartbeats = heartbeats
        self._others = others
        self._phase = Phase.LOADING

    def announce(self, phase: Phase) -> None:
        """As the leader, say where the group is; phases come in their order."""
        self._store.add(_PHASE, phase - self._phase)
        self._phase = phase
        if phase is Phase.ENDING:
            self._heartbeats.stop()

    def phase(self) -> Phase:
        """Where the leader says that the group is."""
        phase = Phase(self._store.add(_PHASE, 0))
        if phase is Phase.ENDING:
            self._heartbeats.stop()
        return phase

    def request_stop(self) -> None:
        """Ask the leader to end the group in order."""
        self._heartbeats.request_stop()

    def say_goodbye(self) -> None:
        """As a follower, tell the leader that this pod's ranks have ended."""
        self._store.add(_ENDED, 1)

    def wait_for_goodbyes(self) -> None:
        """As the leader, wait until the others have ended, or for some seconds."""
        deadline = time.monotonic() + LAST_WORDS
        while self._store.add(_ENDED, 0) < self._others and time.monotonic() < deadline:
            time.sleep(POLL)


def meet_peers(
    group: InferenceGroup, rank: int, *, on_loss: Callable[[str], None], on_stop: Callable[[], None]
) -> Peers:
    """Return when all pods of a group of several are there. `on_loss` and `on_stop` are as in `Heartbeats`."""
    ranks = len(group.hosts)
    address = group.hosts[0]
    store = meet(address, group.ports.rendezvous, rank=rank, ranks=ranks)
    heartbeats = Heartbeats(store, address=address, rank=rank, ranks=ranks, on_loss=on_loss, on_stop=on_stop)
    return Peers(store, heartbeats, ranks - 1)
