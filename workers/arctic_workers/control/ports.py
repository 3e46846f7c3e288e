"""The loopback interface: which hosts are there, and free ports of it for local processes."""

import contextlib
import ipaddress
import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"
_LOWEST, _HIGHEST = 10_000, 32_768
_FEWEST = 1000
_KERNELS_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def is_loopback(host: str) -> bool:
    """Whether a host, by its name or address, is this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def free_ports(count: int) -> list[int]:
    """Return ports that nothing uses, below those that the kernel gives to connections: these may go at any moment.

    Where the kernel is told to give away nearly all, they are among these.
    """
    highest = int(_KERNELS_RANGE.read_text().split()[0]) if _KERNELS_RANGE.exists() else _HIGHEST
    if highest < _LOWEST + _FEWEST:
        highest = _HIGHEST
    found: list[int] = []
    for port in random.sample(range(_LOWEST, highest), highest - _LOWEST):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((LOOPBACK, port))
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"{count} ports of {LOOPBACK} between {_LOWEST} and {highest} are wanted, {len(found)} are free")
