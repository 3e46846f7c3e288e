"""Builds the other implementation's environment before the first test, outside any test's time limit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INTERPRETER = pytest.StashKey[str]()


def pytest_sessionstart(session: pytest.Session) -> None:
    built = subprocess.run([sys.executable, HERE / "environment.py"], check=True, stdout=subprocess.PIPE, text=True)
    session.config.stash[INTERPRETER] = built.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="session")
def llama_cpp(request: pytest.FixtureRequest) -> list[str]:
    """The command that runs a checkpoint in llama.cpp; its arguments are in `llama_cpp_runner.py`."""
    return [request.config.stash[INTERPRETER], str(HERE / "llama_cpp_runner.py")]
