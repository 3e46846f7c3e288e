"""What is short or left out in `make test`, and long or done by other words of the Makefile; on which engines the
conformance suite runs. And no proxy between tests and what they start.
"""

import os

import pytest

pytest.register_assert_rewrite("conformance")

_HERE = ("127.0.0.1", "127.0.0.2", "localhost")


def pytest_configure() -> None:
    """What tests start is on this machine, whatever proxy it needs for the rest."""
    os.environ["no_proxy"] = ",".join([*_HERE, *filter(None, [os.environ.get("no_proxy")])])


def pytest_addoption(parser: pytest.Parser) -> None:
    """The lengths, what decides everything that is drawn, and what takes long to build."""
    parser.addoption("--faults", type=int, default=10, help="faults that the campaign against the operator inflicts")
    parser.addoption("--manifests", type=int, default=100, help="manifests that the operator is shown")
    parser.addoption("--requests", type=int, default=60, help="requests that an inference group is soaked in")
    parser.addoption("--away", type=float, default=30, help="seconds that the API server is away for")
    parser.addoption("--seed", type=int, default=1, help="seed of all three")
    parser.addoption("--pictures", help="folder for drawings of the dashboards, from what the cluster tests have done")
    parser.addoption(
        "--peers", action="store_true", help="test with other projects' controllers, which are built first"
    )
    parser.addoption(
        "--engine",
        dest="engines",
        action="append",
        choices=("native", "vllm"),
        help="engine that the conformance suite runs on, may be given again; all of them by default",
    )
