"""Free ports of the loopback interface."""

import socket
from pathlib import Path

import pytest

from arctic_workers.control import ports as module
from arctic_workers.control.ports import LOOPBACK, free_ports


def test_ports_are_different_free_and_none_that_the_kernel_gives_away() -> None:
    lowest_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = free_ports(8)
    assert len(set(ports)) == 8
    assert max(ports) < lowest_given
    for port in ports:
        with socket.create_server((LOOPBACK, port)):
            pass


@pytest.mark.parametrize("given", ["1024\t65535", "10000\t65000", "10002\t65535"])
def test_there_are_ports_where_the_kernel_gives_away_nearly_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    (tmp_path / "range").write_text(f"{given}\n")
    monkeypatch.setattr(module, "_KERNELS_RANGE", tmp_path / "range")
    assert len(set(free_ports(8))) == 8
