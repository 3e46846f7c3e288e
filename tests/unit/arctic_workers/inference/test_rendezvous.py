"""How ranks notice that another is gone, with real connections."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from arctic_workers.inference import rendezvous
from arctic_workers.inference.rendezvous import Heartbeats, meet

SOON = 15.0
"""Seconds; fewer than those of a silence that is a loss."""


class Pair:
    """Rank 0 and rank 1 of a group, what rank 0 listens at, and rank 1's line to it."""

    def __init__(self, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.losses: list[str] = []
        self.lost = threading.Event()
        self._monkeypatch = monkeypatch
        with ThreadPoolExecutor(2) as pool:
            self._stores = list(pool.map(lambda rank: meet("127.0.0.1", port, rank=rank, ranks=2), range(2)))
        listen = rendezvous.listen

        def listening(address: str) -> socket.socket:
            listener = listen(address)
            self.port = listener.getsockname()[1]
            return listener

        monkeypatch.setattr(rendezvous, "listen", listening)
        self._ranks = [self._heartbeats(0, self._lose)]

    def join(self) -> socket.socket:
        """Let rank 1 come; return its line."""
        lines: list[socket.socket] = []
        connect = socket.create_connection

        def connected(*arguments: object) -> socket.socket:
            lines.append(connect(*arguments))  # type: ignore[arg-type]
            return lines[-1]

        with self._monkeypatch.context() as patched:
            patched.setattr(socket, "create_connection", connected)
            self._ranks.append(self._heartbeats(1, lambda _: None))
        return lines[0]

    def greeting(self) -> bytes:
        """Return what rank 1 says first."""
        return bytes(self._stores[0].get("line/1").split()[1])

    def tell(self, words: bytes) -> None:
        """Come to rank 0's port as a stranger, say something and leave; nobody may listen there any more."""
        with suppress(ConnectionError), socket.create_connection(("127.0.0.1", self.port)) as stranger:
            stranger.sendall(words)

    def stop(self) -> None:
        """End in order."""
        for rank in self._ranks:
            rank.stop()

    def _heartbeats(self, rank: int, on_loss: Callable[[str], None]) -> Heartbeats:
        store = self._stores[rank]
        return Heartbeats(store, address="127.0.0.1", rank=rank, ranks=2, on_loss=on_loss, on_stop=pytest.fail)

    def _lose(self, why: str) -> None:
        self.losses.append(why)
        self.lost.set()


@pytest.fixture
def pair(free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setattr(rendezvous, "INTERVAL", 0.05)
    made = Pair(free_port(), monkeypatch)
    yield made
    made.stop()


@pytest.mark.parametrize(
    "words", [b"GET / HTTP/1.1\r\n\r\n", b"7", b"\xff" * 32, b"GET / HTTP/1.1\r\nHost: 10.0.0.1:29501\r\n\r\n"]
)
def test_a_rank_that_ends_is_noticed_at_once_though_a_stranger_came_before(pair: Pair, words: bytes) -> None:
    pair.tell(words)
    line = pair.join()
    assert not pair.lost.wait(0.3)
    line.shutdown(socket.SHUT_RDWR)
    assert pair.lost.wait(SOON)
    assert pair.losses == ["the connection to rank 1 broke"]


def test_a_stranger_that_says_nothing_keeps_no_rank_from_being_watched(pair: Pair) -> None:
    with socket.create_connection(("127.0.0.1", pair.port)):
        line = pair.join()
        assert not pair.lost.wait(0.3)
        line.shutdown(socket.SHUT_RDWR)
        assert pair.lost.wait(SOON)


@pytest.mark.parametrize("words", [b"1", b"1" + b"0" * 31])
def test_a_stranger_that_gives_itself_out_as_a_rank_is_none(pair: Pair, words: bytes) -> None:
    pair.tell(words)
    pair.join()
    pair.tell(words)
    assert not pair.lost.wait(0.5)


def test_each_rank_has_one_line_alone(pair: Pair) -> None:
    line = pair.join()
    pair.tell(pair.greeting())
    assert not pair.lost.wait(0.5)
    line.shutdown(socket.SHUT_RDWR)
    assert pair.lost.wait(SOON)
