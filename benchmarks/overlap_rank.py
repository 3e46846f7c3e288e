"""One of two ranks that train the same model with different layers of experts: reads orders, a line a time, answers.

An order is a JSON object with a `step` of a system, or a `transfer` of so many bytes, whose answer has its seconds; or
with `chunks_to_try`.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from arctic_workers.training import engine as engines
from arctic_workers.training.experts import Exchange, ParallelExperts
from arctic_workers.training.experts.exposure import Flights, shares
from benchmarks.links import DEVICE
from benchmarks.overlap_ideal import Event
from benchmarks.overlap_systems import AUTOEP, CONFIG, DEEPSPEED, OURS, SEQUENCE, TOKENS, start

_DEVICES = Path("/proc/self/net/dev")
_PROTOCOLS = Path("/proc/self/net/snmp")
_HEADERS = 14 + 20 + 32
"""Bytes of Ethernet, IPv4 and TCP with its time stamps; an acknowledgement is nothing else."""
_SEGMENT = 1500 - 20 - 32
"""Bytes of the stream that a full packet carries."""
_ZERO = ("all_reduce", "reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast")
"""Collectives that ZeRO uses."""


class Stopwatch:
    """Seconds spent in calls of functions that it stands before."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return `call`, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            begin = time.monotonic()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds += time.monotonic() - begin

        return timed


class Recorder:
    """What a rank's thread does in a step, as the schedule that `overlap_ideal` plays again."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._numbers: dict[int, int] = {}
        self._since = time.thread_time()

    def begin(self) -> None:
        """Forget what was before."""
        self._events, self._numbers, self._since = [], {}, time.thread_time()

    def end(self) -> list[Event]:
        """Return the events; the work after the last is one too."""
        return [*self._events, Event(time.thread_time() - self._since, None, launch=False)]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Stand before the exchanges' methods."""
        launch, wait = Exchange._launch, Exchange.wait

        def launched(exchange: Exchange, rows: Any, into: Any, sent: Any, received: Any, **named: Any) -> None:
            peer = 1 - dist.get_rank()
            count = max(sent[peer], received[peer]) * rows.shape[1] * rows.element_size()
            self._numbers[id(exchange)] = number = len([event for event in self._events if event.launch])
            self._note(Event(time.thread_time() - self._since, number, launch=True, sent=count))
            launch(exchange, rows, into, sent, received, **named)

        def waited(exchange: Exchange, *arguments: Any) -> Any:
            # What is done meanwhile is work before the wait.
            arriving = wait(exchange, *arguments)
            self._note(Event(time.thread_time() - self._since, self._numbers[id(exchange)], launch=False))
            return arriving

        with patch.object(Exchange, "_launch", launched), patch.object(Exchange, "wait", waited):
            yield

    def _note(self, event: Event) -> None:
        self._events.append(event)
        self._since = time.thread_time()


@contextmanager
def waited_for_in_place() -> Iterator[None]:
    """Have each exchange waited for where it is launched."""
    launch = Exchange._launch

    def launched(exchange: Exchange, *arguments: Any, **named: Any) -> None:
        launch(exchange, *arguments, **named)
        assert exchange._flight is not None
        with exchange.flights.waiting(exchange._flight):
            exchange._work.wait()

    with patch.object(Exchange, "_launch", launched):
        yield


class Rank:
    """The engines of all systems, and one batch of random tokens for all of them."""

    def __init__(self) -> None:
        self.ranks = engines.start_processes()
        self._engines = {name: start(name, self.ranks) for name in (OURS, AUTOEP, DEEPSPEED)}
        generator = torch.Generator().manual_seed(self.ranks.rank)
        shape = (TOKENS // SEQUENCE, SEQUENCE + 1)
        self._batch = torch.randint(CONFIG.vocab_size, shape, generator=generator)
        self._zero = Stopwatch()
        for name in _ZERO:
            setattr(dist, name, self._zero.around(getattr(dist, name)))
        self._layers = [
            module for module in self._engines[OURS].module.modules() if isinstance(module, ParallelExperts)
        ]

    @property
    def _flights(self) -> Flights:
        return self._layers[0].company.flights

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """Do what a line asks for."""
        if "transfer" in order:
            return self._transfer(order["transfer"])
        if "chunks_to_try" in order:
            return {"chunks": self._layers[0].chunks_to_try}
        for layer in self._layers:
            layer.chunks = order.get("chunks", layer.chunks)
        if order.get("in_place"):
            with waited_for_in_place():
                return self._step(order["step"])
        return self._step(order["step"])

    def _step(self, system: str) -> dict[str, Any]:
        engine, recorder = self._engines[system], Recorder()
        self._flights.take()
        dist.barrier()
        self._zero.seconds = 0.0
        sent, begin = _bytes_sent(), time.monotonic()
        with recorder.recording():
            recorder.begin()
            loss, balance = engine(self._batch)
            engine.backward(loss + balance)
            engine.step()
            events = recorder.end()
        seconds = time.monotonic() - begin
        parts = shares(self._flights.take())
        return {
            "seconds": seconds,
            "loss": float(loss),
            "sent": _bytes_sent() - sent,
            "zero": self._zero.seconds,
            "waited": sum(part.exposed for part in parts.values()),
            "parts": [which._asdict() | part._asdict() for which, part in parts.items()],
            "events": [event._asdict() for event in events],
        }

    def _transfer(self, count: int) -> dict[str, Any]:
        """Exchange so many bytes with the other rank, nothing else being done."""
        group = self._layers[0].ep_group
        rows = torch.zeros(2 * count // 4)
        arriving = torch.empty_like(rows)
        dist.barrier()
        begin = time.monotonic()
        dist.all_to_all_single(arriving, rows, group=group)
        return {"seconds": time.monotonic() - begin}


def _bytes_sent() -> int:
    """Return what the link's device has sent since it is there, less headers and what was sent again.

    Both say how the kernel carried the same stream: it cuts it into 1,448 bytes or 64 KiB, and loses some of it where a
    core that computes is slow to take what arrives.
    """
    [counts] = [line.split(":")[1] for line in _DEVICES.read_text().splitlines() if line.strip().startswith(DEVICE)]
    sent, packets = map(int, counts.split()[8:10])
    names, values = [line.split() for line in _PROTOCOLS.read_text().splitlines() if line.startswith("Tcp:")]
    again = int(dict(zip(names, values, strict=True))["RetransSegs"])
    return sent - packets * _HEADERS - again * _SEGMENT


def main() -> None:
    """Answer until nothing more comes."""
    torch.set_num_threads(1)
    rank = Rank()
    for line in sys.stdin:
        print(json.dumps(rank.answer(json.loads(line))), flush=True)
    os._exit(0)  # the peer is gone too: there is nothing to take leave of


if __name__ == "__main__":
    main()
