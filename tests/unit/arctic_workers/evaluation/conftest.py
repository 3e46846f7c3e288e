"""One sandbox for all judges: it tries itself out each time that one is made."""

import pytest

from arctic_workers.evaluation.sandbox import Sandbox


@pytest.fixture(scope="session")
def sandbox() -> Sandbox:
    return Sandbox()
