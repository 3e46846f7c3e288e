"""Which CPUs are near which memory, and memory that is near some."""

import gc
import os
from pathlib import Path

import pytest

from arctic_workers.inference.engines.native.kernel.arena import Arena
from arctic_workers.inference.engines.native.kernel.nodes import ANYWHERE, bits_of, cpus_of_ranks


@pytest.fixture
def sockets(tmp_path: Path) -> Path:
    """Two sockets, memory without CPUs, and what else Linux puts beside them."""
    for node, cpus in {"node0": "0-3,8-11", "node10": "4-7,12-15", "node2": ""}.items():
        (tmp_path / node).mkdir()
        (tmp_path / node / "cpulist").write_text(f"{cpus}\n")
    (tmp_path / "online").write_text("0,2,10\n")
    return tmp_path


def test_each_tensor_rank_has_a_node_where_there_are_as_many(sockets: Path) -> None:
    first, second = {0, 1, 2, 3, 8, 9, 10, 11}, {4, 5, 6, 7, 12, 13, 14, 15}
    assert cpus_of_ranks(2, 16, {*range(16)}, sockets) == [first, second]
    assert cpus_of_ranks(2, 4, {2, 3, 4, 5, 6}, sockets) == [{2, 3}, {4, 5, 6}], "of those that this process may use"


def test_threads_run_anywhere_where_nodes_do_not_match_the_ranks(sockets: Path, tmp_path: Path) -> None:
    assert cpus_of_ranks(2, 4, {*range(4)}, sockets) == [ANYWHERE] * 2
    assert cpus_of_ranks(3, 16, {*range(16)}, sockets) == [ANYWHERE] * 3
    assert cpus_of_ranks(1, 16, {*range(16)}, sockets) == [ANYWHERE]
    assert cpus_of_ranks(1, 4, {*range(4)}, sockets) == [ANYWHERE]
    assert cpus_of_ranks(2, 3, {2, 3, 4}, sockets) == [ANYWHERE] * 2, "two threads of one rank would share a CPU"
    assert cpus_of_ranks(2, 16, {*range(16)}, tmp_path / "none") == [ANYWHERE] * 2


def test_a_set_of_cpus_is_a_bit_each() -> None:
    bits = bits_of(frozenset({0, 9, 8191}))
    assert (bits[:2], bits[-1]) == (b"\x01\x02", 0x80)


def test_memory_near_some_cpus_is_taken_at_once_by_a_thread_there() -> None:
    def resident() -> int:
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
        return 1024 * int(line.split()[1])

    allowed, size = os.sched_getaffinity(0), 96 << 20
    gc.collect()  # or what others left would be given back meanwhile
    before = resident()
    anywhere = Arena().take(size)
    assert resident() - before < size // 2
    near = Arena(frozenset({max(allowed)})).take(size)
    assert size * 3 // 4 < resident() - before
    assert not near.any()
    assert os.sched_getaffinity(0) == allowed
    assert len(anywhere) == len(near)
