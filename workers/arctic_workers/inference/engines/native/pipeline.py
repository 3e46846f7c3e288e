"""A step's way through the ranks: who sends what to whom. No scheduling.

Rank 0 submits; each rank computes its layers and hands the step's parts on with its hidden states, in one message; the
last rank answers rank 0 with the chosen tokens. Everything is in order, so that several steps may be on their way.
Rank 0 alone decides on an end; a rank whose neighbour is gone gets `PeerLost`.
"""

from collections.abc import Iterator, Sequence
from enum import IntEnum

from torch import Tensor

from arctic_api.engine_options import PipelineFormat
from arctic_model.devices import on_device
from arctic_workers.inference.engines.native.link import Link, Message
from arctic_workers.inference.engines.native.runner import Runner
from arctic_workers.inference.engines.native.step import (
    Drawn,
    Part,
    decode_drawn,
    decode_parts,
    encode_drawn,
    encode_parts,
)
from arctic_workers.inference.engines.native.wire import decode_states, encode_states


class Kind(IntEnum):
    """What a message is about."""

    STEP = 0
    """Integers are parts, the bytes hidden states; from the last rank integers are tokens."""
    READY = 1
    """A real pass has gone through all ranks."""
    STOP = 2
    """End in order."""
    SIZE = 3
    """The integer is the least of what ranks have said so far."""


class Pipeline:
    """Rank 0's view: its own layers and all behind them; `link` is None where there are none."""

    def __init__(self, runner: Runner, link: Link | None, wire: PipelineFormat) -> None:
        self._runner = runner
        self._link = link
        self._wire = wire
        self._done: list[list[Drawn]] = []

    def submit(self, parts: Sequence[Part]) -> None:
        """Start a step: compute its first layers."""
        x_TD = self._runner.run(parts, None)
        if self._link is None:
            self._done.append(self._runner.sample(parts, x_TD))
        else:
            self._link.send(_step(parts, x_TD, self._wire))

    def collect(self) -> list[Drawn]:
        """Wait for the oldest step's tokens, in the order of the parts that asked for one. Raises PeerLost."""
        return self._done.pop(0) if self._link is None else decode_drawn(self._link.receive().numbers)

    def announce_ready(self) -> None:
        """Tell all ranks that a real pass has gone through them."""
        if self._link is not None:
            self._link.send(Message(Kind.READY))

    def stop(self) -> None:
        """Tell all ranks to end; no step may be on its way."""
        if self._link is not None:
            self._link.send(Message(Kind.STOP))
            self._link.close()
        self._runner.stop()


def follow(runner: Runner, link: Link, *, last: bool, hidden_size: int, wire: PipelineFormat) -> Iterator[Kind]:
    """Serve as a later rank; yield each kind of message once it is dealt with, `STOP` last. Raises PeerLost."""
    kind = None
    while kind is not Kind.STOP:
        message = link.receive()
        kind = Kind(message.kind)
        if kind is Kind.STEP and message.raw is not None:
            parts = decode_parts(message.numbers)
            rows = sum(len(part.tokens) for part in parts)
            raw = on_device(message.raw, runner.device)
            x_TD = runner.run(parts, decode_states(raw, rows, hidden_size, wire))
            if last:
                link.send(Message(Kind.STEP, encode_drawn(runner.sample(parts, x_TD))))
            else:
                link.send(_step(parts, x_TD, wire))
        elif not last:
            link.send(message)
        yield kind
    link.close()
    runner.stop()


def agree_on_least(link: Link, value: int, *, first: bool) -> int:
    """Return the least of all ranks' values, once all are here. Raises PeerLost.

    They go round the ring twice: the first time each rank puts in its own, the second time all hear the least.
    """
    if first:
        link.send(Message(Kind.SIZE, [value]))
        least = link.receive()
        link.send(least)
        link.receive()
        return least.numbers[0]
    link.send(Message(Kind.SIZE, [min(value, *link.receive().numbers)]))
    least = link.receive()
    link.send(least)
    return least.numbers[0]


def _step(parts: Sequence[Part], x_TD: Tensor, wire: PipelineFormat) -> Message:
    return Message(Kind.STEP, encode_parts(parts), encode_states(x_TD, wire))
