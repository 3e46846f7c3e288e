"""A rank's lines in the ring of a pipeline: from the rank before it, to the one after it, from the last to rank 0.

Messages are in order, and are sent and received by threads of their own, so that a rank computes while they travel. A
message is a header, 64-bit integers and bytes: nothing is pickled.
"""

import logging
import queue
import socket
import struct
import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]

from arctic_workers.inference.rendezvous import greeted, listen, new_greeting, read_whole

log = logging.getLogger(__name__)

_HEADER = struct.Struct("<3q")
"""Kind, integers, bytes."""


class PeerLost(RuntimeError):  # noqa: N818 - the group's end, not this rank's fault
    """Another rank of the group is gone."""


@dataclass(frozen=True)
class Message:
    """What one rank tells the next."""

    kind: int
    numbers: Sequence[int] = ()
    """Of 64 bits each."""
    raw: Tensor | None = None
    """Bytes, [n] of uint8."""


def write_message(line: socket.socket, message: Message) -> None:
    """Send a message over a line. Raises OSError."""
    raw = b"" if message.raw is None else message.raw.numpy().data
    header = _HEADER.pack(message.kind, len(message.numbers), len(raw))
    line.sendall(header + array("q", message.numbers).tobytes())
    line.sendall(raw)


def read_message(line: socket.socket) -> Message:
    """Wait for the next message of a line. Raises OSError, also where the line has ended."""
    kind, count, size = _HEADER.unpack(read_whole(line, bytearray(_HEADER.size)))
    numbers = array("q", bytes(read_whole(line, bytearray(8 * count))))
    raw = torch.empty(size, dtype=torch.uint8)
    read_whole(line, raw.numpy().data)
    return Message(kind, numbers, raw if size else None)


class Link:
    """Sends to one neighbour and receives from the other."""

    def __init__(self, incoming: socket.socket, outgoing: socket.socket) -> None:
        """Take over two connected sockets."""
        self._incoming, self._outgoing = incoming, outgoing
        outgoing.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._to_send: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._received: queue.SimpleQueue[Message | Exception] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send_all, name="sender", daemon=True)
        self._receiver = threading.Thread(target=self._receive_all, name="receiver", daemon=True)
        self._sender.start()
        self._receiver.start()

    def send(self, message: Message) -> None:
        """Queue a message, whose bytes must not change any more."""
        self._to_send.put(message)

    def receive(self) -> Message:
        """Wait for the next message. Raises PeerLost, also where one could not be sent."""
        received = self._received.get()
        if isinstance(received, Exception):
            self._received.put(received)  # nothing will come any more, whoever asks again
            raise PeerLost("the connection to another rank broke") from received
        return received

    def close(self) -> None:
        """Return when all is sent; receive no more."""
        self._to_send.put(None)
        self._sender.join()
        for line in (self._outgoing, self._incoming):
            try:
                line.shutdown(socket.SHUT_RDWR)
            except OSError:
                log.debug("A neighbour closed its end first")
        self._receiver.join()
        self._outgoing.close()
        self._incoming.close()

    def _send_all(self) -> None:
        try:
            while (message := self._to_send.get()) is not None:
                write_message(self._outgoing, message)
        except OSError as error:
            self._received.put(error)

    def _receive_all(self) -> None:
        try:
            while True:
                self._received.put(read_message(self._incoming))
        except OSError as error:
            self._received.put(error)


def connect(store: Store, *, address: str, port: int, rank: int, ranks: int) -> Link:
    """Meet both neighbours; all ranks know the store at an address and a port. RuntimeError if one can't be reached.

    An address on loopback keeps the lines there.
    """
    host = address if rank == 0 else _own_address(address, port)
    greeting = new_greeting()
    with listen(address) as listener:
        store.set(f"ring/{rank}", f"{host} {listener.getsockname()[1]} {greeting.decode()}")
        next_host, next_port, expected = store.get(f"ring/{(rank + 1) % ranks}").decode().split()
        try:
            outgoing = socket.create_connection((next_host, int(next_port)))
            outgoing.sendall(expected.encode())
        except OSError as error:
            raise RuntimeError(f"the next rank can't be reached at {next_host}, port {next_port}: {error}") from error
        return Link(_accept(listener, greeting), outgoing)


def _own_address(address: str, port: int) -> str:
    """Under which address rank 0 sees this rank: names of pods may be known later than the pods are there."""
    with socket.create_connection((address, port)) as line:
        return str(line.getsockname()[0])


def _accept(listener: socket.socket, greeting: bytes) -> socket.socket:
    while True:
        line, _ = listener.accept()
        if greeted(line, [greeting]) is not None:
            return line
        line.close()
