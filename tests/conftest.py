"""How long the seeded campaigns are: short in `make test`, long in `make chaos` and `make soak`."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The lengths, and what decides everything that is drawn."""
    parser.addoption("--faults", type=int, default=10, help="faults that the campaign against the operator inflicts")
    parser.addoption("--requests", type=int, default=60, help="requests that an inference group is soaked in")
    parser.addoption("--seed", type=int, default=1, help="seed of both")
