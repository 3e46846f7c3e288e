"""Makes the clients' environment before the first test, outside any test's time limit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETER = pytest.StashKey[Path]()


def pytest_sessionstart(session: pytest.Session) -> None:
    command = [sys.executable, Path(__file__).parent / "environment.py"]
    built = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    session.config.stash[INTERPRETER] = Path(built.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def client_python(request: pytest.FixtureRequest) -> Path:
    """The interpreter that has the clients."""
    return request.config.stash[INTERPRETER]
