"""The real local cluster of the tests: one for the whole session, and a namespace for each test."""

import os
import re
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from kubernetes.aio import client, config
from stand_in import placed

from arctic_cli.demo import install_operator
from arctic_cluster import Cluster
from arctic_cluster.files import locked
from arctic_cluster.manifests import restricted_namespace
from arctic_operator.cluster import Cluster as OperatorCluster

_CLUSTER = "test"
_LONGEST_NAME = 40


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what needs other projects' controllers, unless they are asked for."""
    return True if collection_path.name == "test_lws.py" and not config.getoption("--peers") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the campaign of faults last: other tests shall not see what it leaves in logs and back-offs."""
    items.sort(key=lambda item: item.path.name == "test_chaos.py")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A fresh cluster, started on first use and ended with the session; a second session waits for the first."""
    if os.geteuid() != 0:
        pytest.fail("the cluster tests need root: run them with sudo")
    with locked(Path(f"/run/lock/arctic-cluster-{_CLUSTER}.session.lock")):
        it = Cluster(_CLUSTER)
        it.down()
        it.up()
        yield it
        it.down()


@pytest.fixture(scope="session")
def operator(cluster: Cluster) -> Cluster:
    """The cluster with the chart installed, once for the session: the operator serves all namespaces."""
    install_operator(cluster)
    return cluster


@pytest.fixture(scope="session")
def stand_in(operator: Cluster) -> Iterator[None]:
    """The stand-in worker, where the pods see it."""
    with placed(operator):
        yield


@pytest.fixture
def kubectl(cluster: Cluster) -> Callable[..., str]:
    """Runs kubectl on the cluster."""
    return cluster.kubectl


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


@pytest.fixture
async def calls(cluster: Cluster) -> AsyncIterator[OperatorCluster]:
    """The operator's calls of the API server, made by an administrator."""
    configuration = client.Configuration()
    await config.load_kube_config(str(cluster.kubeconfig), client_configuration=configuration)
    async with client.ApiClient(configuration) as api:
        yield OperatorCluster(api)
