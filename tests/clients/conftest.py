"""Makes the clients' environment before the first test, outside any test's time limit."""

from __future__ import annotations

from pathlib import Path

import pytest
from peers import interpreter

INTERPRETER = pytest.StashKey[Path]()


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[INTERPRETER] = interpreter("lm-eval")


@pytest.fixture(scope="session")
def client_python(request: pytest.FixtureRequest) -> Path:
    """The interpreter that has the clients."""
    return request.config.stash[INTERPRETER]
