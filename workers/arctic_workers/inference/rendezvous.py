"""How the ranks of a group find each other, and how each notices that another is gone.

A rank that ends is noticed at once: it has a line open to rank 0, over which nothing is said. One that hangs, or whose
node is away without a word, is noticed by heartbeats in the store of the rendezvous, which every rank writes from a
thread of its own however long a step takes.
No engine here: those of several pods meet like this, each with what its ranks then have among themselves.
"""

import ipaddress
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

log = logging.getLogger(__name__)

MEETING = timedelta(minutes=30)
"""How long ranks wait for each other: pods of a group may be scheduled, and images pulled, at different times."""
INTERVAL = 1.0
"""Seconds between heartbeats."""
SILENCE = 20.0
"""Seconds without a heartbeat after which a rank is lost."""
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


def is_loopback(address: str) -> bool:
    """Whether a host of a group is this machine itself: a group of local processes."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


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
        self._lines = selectors.DefaultSelector()
        self._open_line(address)
        for target in (self._run, self._watch_lines):
            threading.Thread(target=target, name="heartbeats", daemon=True).start()

    def request_stop(self) -> None:
        """Ask rank 0 to end the group in order."""
        self._stop_requested.set()

    def stop(self) -> None:
        """Watch no more: the group ends in order."""
        self._ended.set()

    def _open_line(self, address: str) -> None:
        """As rank 0 listen for the others' lines, as another rank open its own; the data of each is who it is to."""
        if self._rank == 0:
            listener = listen(address)
            self._store.set(_LINE, str(listener.getsockname()[1]))
            self._lines.register(listener, selectors.EVENT_READ)
            return
        line = socket.create_connection((address, int(self._store.get(_LINE))))
        line.sendall(str(self._rank).encode())
        self._lines.register(line, selectors.EVENT_READ, data=0)

    def _watch_lines(self) -> None:
        listeners = self._rank == 0
        while True:
            for key, _ in self._lines.select():
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                if listeners and connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    self._lines.register(connection.accept()[0], selectors.EVENT_READ)
                elif said := _said(connection):
                    self._lines.modify(connection, selectors.EVENT_READ, data=int(said))
                else:
                    self._lines.unregister(connection)
                    # Who never said which rank it is, is none.
                    if key.data is not None and not self._ended.wait(INTERVAL):
                        self._on_loss(f"the connection to rank {key.data} broke")

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


def _said(line: socket.socket) -> bytes:
    """What came over a line; nothing where it is closed or broken."""
    try:
        return line.recv(16)
    except OSError:
        return b""
