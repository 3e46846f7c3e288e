"""A step's way through the ranks: who sends what to whom. No scheduling.

Rank 0 submits; each rank hands the step's parts on before it computes, then its hidden states; the last rank answers
rank 0 with the chosen tokens. Everything is in order, so that several steps may be on their way. Rank 0 alone decides
on an end; a rank whose neighbour is gone gets `PeerLost`.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum

import torch
from torch import Tensor, distributed

from arctic_workers.inference.engines.native.runner import Runner
from arctic_workers.inference.engines.native.step import (
    Drawn,
    Part,
    decode_drawn,
    decode_parts,
    encode_drawn,
    encode_parts,
)

log = logging.getLogger(__name__)


class PeerLost(RuntimeError):  # noqa: N818 - the group's end, not this rank's fault
    """Another rank of the group is gone."""


class Kind(IntEnum):
    """What a message is about."""

    STEP = 0
    """Integers are parts, and hidden states follow."""
    READY = 1
    """A real pass has gone through all ranks."""
    STOP = 2
    """End in order."""


class Pipeline:
    """Rank 0's view: its own layers and all behind them."""

    def __init__(self, runner: Runner, ranks: int) -> None:
        self._runner = runner
        self._ranks = ranks
        self._done: list[list[Drawn]] = []

    def submit(self, parts: Sequence[Part]) -> None:
        """Start a step."""
        if self._ranks == 1:
            self._done.append(self._runner.sample(parts, self._runner.run(parts, None)))
            return
        _send_integers(Kind.STEP, encode_parts(parts), to=1)
        _send_states(self._runner.run(parts, None), to=1)

    def collect(self) -> list[Drawn]:
        """Wait for the oldest step's tokens, in the order of the parts that asked for one."""
        if self._ranks == 1:
            return self._done.pop(0)
        _, numbers = _receive_integers(self._ranks - 1)
        return decode_drawn(numbers)

    def announce(self, kind: Kind) -> None:
        """Tell all ranks `READY` or `STOP`."""
        if self._ranks > 1:
            _send_integers(kind, [], to=1)


def follow(runner: Runner, rank: int, ranks: int, hidden_size: int) -> Iterator[Kind]:
    """Serve as a later rank; yield each kind of message once it is dealt with, `STOP` last. Raises PeerLost."""
    last = rank == ranks - 1
    while True:
        kind, numbers = _receive_integers(rank - 1)
        if not last:
            _send_integers(kind, numbers, to=rank + 1)
        if kind is Kind.STEP:
            parts = decode_parts(numbers)
            x_TD = runner.run(parts, _receive_states(sum(len(part.tokens) for part in parts), hidden_size, rank - 1))
            if last:
                _send_integers(Kind.STEP, encode_drawn(runner.sample(parts, x_TD)), to=0)
            else:
                _send_states(x_TD, to=rank + 1)
        yield kind
        if kind is Kind.STOP:
            return


def agree_on_least(value: int) -> int:
    """Return the least of all ranks' values, once all are here."""
    least = torch.tensor([value])
    with _peers():
        distributed.all_reduce(least, op=distributed.ReduceOp.MIN)
    return int(least)


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo raises nothing more precise
        raise PeerLost("the connection to another rank broke") from error


def _send_integers(kind: Kind, numbers: Sequence[int], *, to: int) -> None:
    with _peers():
        distributed.send(torch.tensor([kind, len(numbers)]), to)
        if numbers:
            distributed.send(torch.tensor(numbers), to)


def _receive_integers(source: int) -> tuple[Kind, list[int]]:
    header = torch.empty(2, dtype=torch.int64)
    with _peers():
        distributed.recv(header, source)
        kind, count = header.tolist()
        numbers = torch.empty(count, dtype=torch.int64)
        if count:
            distributed.recv(numbers, source)
    return Kind(kind), numbers.tolist()


def _send_states(x_TD: Tensor, *, to: int) -> None:
    with _peers():
        distributed.send(x_TD.contiguous(), to)


def _receive_states(tokens: int, hidden_size: int, source: int) -> Tensor:
    x_TD = torch.empty(tokens, hidden_size)
    with _peers():
        distributed.recv(x_TD, source)
    return x_TD
