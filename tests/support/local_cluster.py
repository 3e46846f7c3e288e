"""The real local cluster of the tests as fixtures: one for each process of the session, and a namespace for each test.

A folder whose tests need it imports them into its `conftest.py`.
"""

import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from arctic_cli.demo import install_operator
from arctic_cluster import Cluster
from arctic_cluster.files import locked
from arctic_cluster.manifests import restricted_namespace

_LONGEST_NAME = 40


@pytest.fixture(scope="session")
def cluster(worker_id: str) -> Iterator[Cluster]:
    """A fresh cluster, started on first use and ended with the session; a second session waits for the first.

    `worker_id` is that of a process of the session, "master" where there is one only.
    """
    if os.geteuid() != 0:
        pytest.fail("the cluster tests need root: run them with sudo")
    it = Cluster(f"test-{worker_id}")
    with locked(Path(f"/run/lock/arctic-cluster-{it.name}.session.lock")):
        it.down()
        it.up()
        yield it
        it.down()


@pytest.fixture(scope="session")
def operator(cluster: Cluster) -> Cluster:
    """The cluster with the chart installed, once for the session: the operator serves all namespaces."""
    install_operator(cluster)
    return cluster


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own: restricted, with the claims that workers mount.

    The last one of a test with parameters may still be going, so the name has a part of its own.
    """
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:_LONGEST_NAME].strip("-")
    name = f"{words}-{zlib.crc32(request.node.nodeid.encode()):08x}"
    cluster.apply([restricted_namespace(name)])
    cluster.create_claims(name)
    yield name
    cluster.delete_namespace(name, wait=False)
