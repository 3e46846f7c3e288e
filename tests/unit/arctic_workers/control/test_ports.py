"""Free ports of the loopback interface."""

import socket
from pathlib import Path

from arctic_workers.control.ports import LOOPBACK, free_ports


def test_ports_are_different_free_and_none_that_the_kernel_gives_away() -> None:
    lowest_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = free_ports(8)
    assert len(set(ports)) == 8
    assert max(ports) < lowest_given
    for port in ports:
        with socket.create_server((LOOPBACK, port)):
            pass
