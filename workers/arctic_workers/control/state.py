"""The newest state of a worker and who waits for the next one. No network."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

from arctic_api.world import EvaluationWorld, TrainingWorld, World
from arctic_rpc.control_pb2 import STARTING, EvaluationState, InferenceState, TrainingState, WorkerState


class _Subscription:
    """Wakes one watcher on its own event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.changed = asyncio.Event()
        self.closed = asyncio.Event()

    def wake(self, event: asyncio.Event) -> None:
        with suppress(RuntimeError):  # the watcher's loop ended: nobody is left to tell
            self._loop.call_soon_threadsafe(event.set)


class StateBoard:
    """Holds the newest `WorkerState`; any thread publishes, any number of event loops watch."""

    def __init__(self, world: World) -> None:
        """Begin as STARTING, under the identity that the world gives."""
        self._lock = threading.Lock()
        self._subscriptions: set[_Subscription] = set()
        self._closed = False
        self._uid = world.uid
        self._epoch = 0
        state = WorkerState(phase=STARTING)
        if isinstance(world, TrainingWorld):
            self._epoch = world.epoch
            state.training.CopyFrom(TrainingState())
        elif isinstance(world, EvaluationWorld):
            state.evaluation.CopyFrom(EvaluationState())
        else:
            state.inference.CopyFrom(InferenceState())
        self._latest = self._identified(state)

    def _identified(self, state: WorkerState) -> WorkerState:
        """Return a copy under this world's uid and epoch, with the time of now where it says none."""
        copy = WorkerState()
        copy.CopyFrom(state)
        copy.uid, copy.epoch = self._uid, self._epoch
        if not copy.HasField("time"):
            copy.time.GetCurrentTime()
        return copy

    @property
    def latest(self) -> WorkerState:
        """The newest state; not to be changed."""
        return self._latest

    def publish(self, state: WorkerState) -> None:
        """Make a state the newest; watchers hear of it when more than its time is new. Never blocks.

        A state without any detail keeps the figures of the one before: only what the world does is new.
        """
        copy = self._identified(state)
        with self._lock:
            if copy.WhichOneof("detail") is None:
                detail = self._latest.WhichOneof("detail")
                getattr(copy, detail).CopyFrom(getattr(self._latest, detail))
            news = not _same(copy, self._latest)
            self._latest = copy
            subscriptions = list(self._subscriptions) if news else []
        for subscription in subscriptions:
            subscription.wake(subscription.changed)

    def close(self) -> None:
        """Let every watcher deliver the newest state at once and end."""
        with self._lock:
            self._closed = True
            subscriptions = list(self._subscriptions)
        for subscription in subscriptions:
            subscription.wake(subscription.changed)
            subscription.wake(subscription.closed)

    @contextmanager
    def _subscribed(self) -> Iterator[_Subscription]:
        subscription = _Subscription()
        with self._lock:
            self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            with self._lock:
                self._subscriptions.discard(subscription)

    async def watch(self, pause: float = 1.0) -> AsyncIterator[WorkerState]:
        """Yield the state now, then again whenever it changed, at most once in `pause` seconds, until closed."""
        with self._subscribed() as subscription:
            while True:
                closed = self._closed  # before the state is taken: the last one published must be delivered
                subscription.changed.clear()
                yield self._latest
                if closed:
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(subscription.closed.wait(), pause)
                await subscription.changed.wait()


def _same(a: WorkerState, b: WorkerState) -> bool:
    """Tell whether two states differ in nothing but their time."""
    timeless = WorkerState()
    timeless.CopyFrom(a)
    timeless.time.CopyFrom(b.time)
    return timeless == b
