"""The ring that ranks make of real connections."""

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from arctic_workers.inference.engines.native.link import Link, Message, PeerLost, connect
from arctic_workers.inference.engines.native.pipeline import agree_on_least
from arctic_workers.inference.rendezvous import meet


@pytest.fixture
def make_ring(free_port: Callable[[], int]) -> Callable[[int], list[Link]]:
    stores = []  # rank 0's goes away with its last reference, while others still read from it

    def make(ranks: int) -> list[Link]:
        port = free_port()

        def join(rank: int) -> Link:
            store = meet("127.0.0.1", port, rank=rank, ranks=ranks)
            stores.append(store)
            return connect(store, address="127.0.0.1", port=port, rank=rank, ranks=ranks)

        with ThreadPoolExecutor(ranks) as pool:
            return list(pool.map(join, range(ranks)))

    return make


def test_messages_come_whole_and_in_order(make_ring: Callable[[int], list[Link]]) -> None:
    ring = make_ring(3)
    sent = [
        Message(7, [1, -(2**63), 2**63 - 1], torch.arange(200_000).to(torch.uint8)),
        Message(8),
        Message(9, raw=torch.ones(1, dtype=torch.uint8)),
    ]
    for rank in range(3):
        for message in sent:
            ring[rank].send(message)
    for rank in range(3):
        for message in sent:
            received = ring[rank].receive()
            assert (received.kind, list(received.numbers)) == (message.kind, list(message.numbers))
            assert (received.raw is None) == (message.raw is None)
            assert received.raw is None or (message.raw is not None and received.raw.equal(message.raw))
    for link in ring:
        link.close()


def test_what_was_sent_before_the_end_arrives(make_ring: Callable[[int], list[Link]]) -> None:
    first, second = make_ring(2)
    raw = torch.zeros(30_000_000, dtype=torch.uint8)
    first.send(Message(1, raw=raw))
    first.send(Message(2))
    closing = threading.Thread(target=first.close)
    closing.start()
    assert second.receive().raw is not None
    assert second.receive().kind == 2
    closing.join()
    with pytest.raises(PeerLost, match="broke"):
        second.receive()
    second.close()


def test_who_waits_hears_that_its_neighbour_is_gone(make_ring: Callable[[int], list[Link]]) -> None:
    first, second, third = make_ring(3)
    second.close()
    with pytest.raises(PeerLost, match="broke"):
        third.receive()
    # Rank 0 waits for the last rank, which is there: it hears it by what it sends.
    for _ in range(50):
        first.send(Message(1, raw=torch.zeros(1_000_000, dtype=torch.uint8)))
    with pytest.raises(PeerLost, match="broke"):
        first.receive()


def test_a_stranger_at_the_port_is_no_neighbour(free_port: Callable[[], int]) -> None:
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        stores = list(pool.map(lambda rank: meet("127.0.0.1", port, rank=rank, ranks=2), range(2)))

        def join(rank: int) -> Link:
            return connect(stores[rank], address="127.0.0.1", port=port, rank=rank, ranks=2)

        first = pool.submit(join, 0)
        host, taken, _ = stores[1].get("ring/0").decode().split()
        with socket.create_connection((host, int(taken))) as stranger:
            stranger.sendall(b"0" * 32)
            second = pool.submit(join, 1)
            links = [first.result(), second.result()]
    links[1].send(Message(3))
    assert links[0].receive().kind == 3
    for link in links:
        link.close()


@pytest.mark.parametrize("values", [[5, 3], [3, 5], [4, 9, 2], [1, 1, 1]])
def test_ranks_agree_on_the_least(make_ring: Callable[[int], list[Link]], values: list[int]) -> None:
    ring = make_ring(len(values))
    with ThreadPoolExecutor(len(ring)) as pool:
        agreed = list(
            pool.map(lambda rank: agree_on_least(ring[rank], values[rank], first=rank == 0), range(len(ring)))
        )
    assert agreed == [min(values)] * len(values)
    for link in ring:
        link.close()
