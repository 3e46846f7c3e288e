"""Makes the clients' environments before the first test, outside any test's time limit."""

from __future__ import annotations

from pathlib import Path

import pytest
from peers import interpreter

INTERPRETER = pytest.StashKey[Path]()
PEFT = pytest.StashKey[Path]()


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[INTERPRETER] = interpreter("lm-eval")
    session.config.stash[PEFT] = interpreter("peft")


@pytest.fixture(scope="session")
def client_python(request: pytest.FixtureRequest) -> Path:
    """The interpreter that has the clients."""
    return request.config.stash[INTERPRETER]


@pytest.fixture(scope="session")
def peft_python(request: pytest.FixtureRequest) -> Path:
    """The interpreter that has peft."""
    return request.config.stash[PEFT]
