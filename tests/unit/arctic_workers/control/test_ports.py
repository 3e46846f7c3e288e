"""Free ports of the loopback interface."""

import socket
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from arctic_workers.control import ports as module
from arctic_workers.control.ports import LOOPBACK, free_ports


def test_ports_are_different_free_and_none_that_the_kernel_gives_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "range").write_text("11000\t60999\n")
    monkeypatch.setattr(module, "_KERNELS_RANGE", tmp_path / "range")
    with ExitStack() as stack:
        taken = set()
        for port in free_ports(200):
            with suppress(OSError):  # somebody else was faster
                stack.enter_context(socket.create_server((LOOPBACK, port)))
                taken.add(port)
        ports = free_ports(500)
    assert len(set(ports)) == 500
    assert max(ports) < 11_000
    assert not taken & set(ports)


@pytest.mark.parametrize("given", ["1024\t65535", "10000\t65000", "10002\t65535"])
def test_there_are_ports_where_the_kernel_gives_away_nearly_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    (tmp_path / "range").write_text(f"{given}\n")
    monkeypatch.setattr(module, "_KERNELS_RANGE", tmp_path / "range")
    assert len(set(free_ports(8))) == 8
