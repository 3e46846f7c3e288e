"""What tests on the real local cluster need besides it."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from kubernetes.aio import client, config
from local_cluster import cluster, namespace, operator
from stand_in import placed

from arctic_cluster import Cluster
from arctic_operator.cluster import Cluster as OperatorCluster

PEERS = ("test_kueue.py", "test_lws.py")
LONGEST = ("test_whole_path.py", "test_operator.py", "test_ablation.py", "test_outages.py")
LATEST = 1200
"""Seconds of a test that names no others: each of its waits has a limit of its own, which says what did not come."""
__all__ = ["calls", "cluster", "kubectl", "namespace", "operator", "stand_in"]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what needs other projects' controllers, unless they are asked for."""
    return True if collection_path.name in PEERS and not config.getoption("--peers") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first and the campaign of faults last.

    What takes long and comes last keeps one process busy while the other has nothing left; what the campaign leaves
    in logs and back-offs is for no other test to see.
    """
    last = len(LONGEST) + 1
    order = {name: place for place, name in enumerate(LONGEST)} | {"test_chaos.py": last}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LATEST))


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
async def calls(cluster: Cluster) -> AsyncIterator[OperatorCluster]:
    """The operator's calls of the API server, made by an administrator."""
    configuration = client.Configuration()
    await config.load_kube_config(str(cluster.kubeconfig), client_configuration=configuration)
    async with client.ApiClient(configuration) as api:
        yield OperatorCluster(api)
