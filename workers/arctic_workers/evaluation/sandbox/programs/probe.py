"""Tries what nothing confined may do, and says what went through: a sandbox that was not tried is none."""

import json
import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import IO, Any


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def run(payload: Mapping[str, Any], result: IO[bytes]) -> None:
    """Say which of the attempts were not refused. `payload` has a file to read and one to write, both of others'."""
    attempts: dict[str, Callable[[], Any]] = {
        "read a file": lambda: os.open(payload["readable"], os.O_RDONLY),
        "read another process": lambda: os.open(f"/proc/{os.getppid()}/environ", os.O_RDONLY),
        "write a file": lambda: os.open(payload["writable"], os.O_WRONLY | os.O_CREAT),
        "change a file's mode": lambda: os.chmod(payload["readable"], 0o644),
        "open a socket": lambda: socket.socket(socket.AF_INET),
        "start a process": _fork,
        "run a program": lambda: os.execv(payload["program"], [payload["program"], "-c", ""]),  # noqa: S606
        "signal its parent": lambda: os.kill(os.getppid(), signal.SIGCONT),
    }
    went_through = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except OSError:
            continue
        went_through.append(name)
    result.write(json.dumps(went_through).encode())
