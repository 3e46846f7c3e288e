"""How the ranks of a group find each other, and how each notices that another is gone.

A rank that ends is noticed at once: it has a line open to rank 0, over which nothing is said. One that hangs, or whose
node is away without a word, is noticed by heartbeats in the store of the rendezvous, which every rank writes from a
thread of its own however long a step takes.
No engine here: those of several pods meet like this, each with what its ranks then have among themselves.
"""

import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from arctic_workers.control.ports import is_loopback

log = logging.getLogger(__name__)

MEETING = timedelta(minutes=30)
"""How long ranks wait for each other: pods of a group may be scheduled, and images pulled, at different times."""
INTERVAL = 1.0
"""Seconds between heartbeats."""
SILENCE = 20.0
"""Seconds without a heartbeat after which a rank is lost."""
_GREETING = 32
"""Characters, told in the store, by which a rank is known from somebody else who found a port."""
_GREETING_TIME = 10.0
_STOP = "stop"
_LINE = "line"


def meet(address: str, port: int, *, rank: int, ranks: int, timeout: timedelta = MEETING) -> Store:
    """Return the store of the group, which rank 0 keeps, when all ranks are there. RuntimeError if one is not in time.

    An address on loopback keeps it there.
    """
    # torch listens on all addresses, whatever it is told.
    local = rank == 0 and is_loopback(address)
    listener = socket.create_server((address, port)) if local else None
    return TCPStore(
        address,
        port,
        ranks,
        is_master=rank == 0,
        timeout=timeout,
        master_listen_fd=None if listener is None else listener.detach(),
        use_libuv=True,
    )


class Heartbeats:
    """Beats for this rank, and calls `on_loss` with a sentence when another rank is silent or gone.

    Later ranks watch rank 0, at `address`, which has the store; rank 0 watches all. `request_stop` on any rank makes
    rank 0 call `on_stop`.
    """

    def __init__(
        self,
        store: Store,
        *,
        address: str,
        rank: int,
        ranks: int,
        on_loss: Callable[[str], None],
        on_stop: Callable[[], None],
    ) -> None:
        self._store = store
        self._rank = rank
        self._others = [other for other in range(ranks) if other != rank] if rank == 0 else [0]
        self._on_loss = on_loss
        self._on_stop = on_stop
        self._ended = threading.Event()
        self._stop_requested = threading.Event()
        self._seen = dict.fromkeys(self._others, (0, time.monotonic()))
        self._open_lines(address)
        self._start(self._run)

    def request_stop(self) -> None:
        """Ask rank 0 to end the group in order."""
        self._stop_requested.set()

    def stop(self) -> None:
        """Watch no more: the group ends in order."""
        self._ended.set()

    @staticmethod
    def _start(target: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=target, args=arguments, name="heartbeats", daemon=True).start()

    def _open_lines(self, address: str) -> None:
        """As rank 0 listen for the others' lines, as another rank open its own."""
        if self._rank == 0:
            listener = listen(address)
            expected = {new_greeting(): other for other in self._others}
            for said, other in expected.items():
                self._store.set(f"{_LINE}/{other}", f"{listener.getsockname()[1]} {said.decode()}")
            self._start(self._accept_lines, listener, expected)
            return
        port, greeting = self._store.get(f"{_LINE}/{self._rank}").decode().split()
        line = socket.create_connection((address, int(port)))
        line.sendall(greeting.encode())
        self._start(self._watch, line, 0)

    def _accept_lines(self, listener: socket.socket, expected: dict[bytes, int]) -> None:
        """Take each other rank's line, once, until all are there.

        Whoever comes has a thread of its own, so that a stranger who says nothing holds nobody up.
        """
        with listener:
            while expected:
                self._start(self._welcome, listener.accept()[0], expected)

    def _welcome(self, line: socket.socket, expected: dict[bytes, int]) -> None:
        greeting = greeted(line, list(expected))
        other = None if greeting is None else expected.pop(greeting, None)
        if other is None:
            line.close()
        else:
            self._watch(line, other)

    def _watch(self, line: socket.socket, other: int) -> None:
        """Wait for the end of a line to another rank."""
        with line:
            while _says_something(line):
                log.debug("Rank %d said something where nothing is said", other)
        if not self._ended.wait(INTERVAL):
            self._on_loss(f"the connection to rank {other} broke")

    def _run(self) -> None:
        # The store's calls have no time limit of their own where a node is away without a word.
        with ThreadPoolExecutor(1, "heartbeat") as executor:
            while not self._ended.wait(INTERVAL):
                loss = self._beat_and_look(executor)
                # Rank 0 may end in order and be gone before this rank has read that it did.
                if loss is not None and not self._ended.wait(INTERVAL):
                    self._on_loss(loss)
                    return

    def _beat_and_look(self, executor: ThreadPoolExecutor) -> str | None:
        """Return what is lost, if anything is."""
        try:
            executor.submit(self._beat).result(SILENCE)
        except TimeoutError:
            return f"rank 0 has not answered for {SILENCE:.0f} s"
        except RuntimeError as error:
            return f"the connection to rank 0 broke: {error}"
        now = time.monotonic()
        silent = [str(other) for other, (_, seen) in self._seen.items() if now - seen > SILENCE]
        return f"rank {', '.join(silent)} has been silent for {SILENCE:.0f} s" if silent else None

    def _beat(self) -> None:
        self._store.add(f"alive/{self._rank}", 1)
        for other, (count, _) in list(self._seen.items()):
            latest = self._store.add(f"alive/{other}", 0)
            if latest != count:
                self._seen[other] = (latest, time.monotonic())
        requested = self._store.add(_STOP, int(self._stop_requested.is_set()))
        if requested and self._rank == 0:
            self._on_stop()


def listen(address: str) -> socket.socket:
    """Return a listener on a free port: on all addresses, or on loopback alone where the address is there."""
    if is_loopback(address):
        return socket.create_server((address, 0))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def new_greeting() -> bytes:
    """Return what one rank is to say first to another, who tells it through the store."""
    return secrets.token_hex(_GREETING // 2).encode()


def greeted(line: socket.socket, expected: Iterable[bytes]) -> bytes | None:
    """Return with which of the expected greetings a new line begins; None where it is a stranger's."""
    line.settimeout(_GREETING_TIME)
    try:
        said = bytes(read_whole(line, bytearray(_GREETING)))
        line.settimeout(None)
    except OSError as error:
        log.debug("Somebody came to a rank's port: %s", error)
        return None
    return next((each for each in expected if secrets.compare_digest(said, each)), None)


def read_whole(line: socket.socket, into: Any) -> Any:
    """Fill a buffer and return it. Raises ConnectionError if the line ends before."""
    rest = memoryview(into)
    while rest:
        count = line.recv_into(rest)
        if not count:
            raise ConnectionError("closed by the other end")
        rest = rest[count:]
    return into


def _says_something(line: socket.socket) -> bool:
    """Wait for what comes over a line; false where it is closed or broken."""
    try:
        return bool(line.recv(16))
    except OSError:
        return False
