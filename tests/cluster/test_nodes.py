"""What becomes of nodes, and of what lies on them, is told in the cluster's own words. A stand-in runs in the pods."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from objects import PATIENCE, condition, processes, until_all_ready
from stand_in import CORPUS, StandIns

from arctic_cluster import Cluster, paths
from arctic_cluster.addresses import Node

MI = 1 << 20
LIMIT = "4Mi"


@pytest.fixture
def objects(operator: Cluster, stand_in: None, namespace: str) -> StandIns:
    return StandIns(operator, namespace)


def running_on(objects: StandIns, nodes: int) -> list[Node]:
    """Run a training of so many pods; return the nodes of their pods by rank."""
    objects.train("tiny", parallelism={"nodes": nodes})
    pods = objects.running("tiny", 1, pods=nodes)
    by_name = {node.name: node for node in objects.cluster.nodes}
    return [by_name[pod["spec"]["nodeName"]] for pod in pods]


def endings(objects: StandIns, name: str = "tiny") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = objects.status("arctictraining", name).get("attempts") or []
    return found


@contextmanager
def kubelet_down(cluster: Cluster, node: Node) -> Iterator[None]:
    """Stop a node's kubelet for a while; its containers go on."""
    component = f"node{node.number}-kubelet"
    cluster.stop(component)
    try:
        yield
    finally:
        cluster.start(component)


@contextmanager
def storage_counted(cluster: Cluster) -> Iterator[None]:
    """Have the kubelets of all nodes count, for a while, what pods write, as they do elsewhere by default."""
    files = [cluster.kubeconfig.parent / f"node{node.number}" / "kubelet.json" for node in cluster.nodes]

    def count(yes: bool) -> None:
        for node, file in zip(cluster.nodes, files, strict=True):
            configuration = json.loads(file.read_text())
            with kubelet_down(cluster, node):
                file.write_text(json.dumps(configuration | {"localStorageCapacityIsolation": yes}))

    count(True)
    try:
        yield
    finally:
        count(False)
        until_all_ready(cluster)


def home(pod: dict[str, Any]) -> Path:
    """Return where a pod's worker writes, as this machine sees it."""
    [worker] = (each for each in processes(pod) if b"arctic_workers" in (each / "cmdline").read_bytes())
    variables = dict(each.split(b"=", 1) for each in (worker / "environ").read_bytes().split(b"\0") if each)
    return Path(f"{worker}/root{variables[b'HOME'].decode()}")


def test_a_pod_that_is_evicted_for_disk_is_told_in_the_kubelets_words_whether_it_ends_in_order_or_is_killed(
    objects: StandIns,
) -> None:
    limited: dict[str, Any] = {"resources": {"limits": {"ephemeral-storage": LIMIT}}, "parallelism": {"nodes": 1}}
    workers = {"orderly": {"EXIT_WHEN_TOLD": "75"}, "deaf": {"DEAF": "yes"}}
    with storage_counted(objects.cluster):
        for name, worker in workers.items():
            objects.train(name, worker, **limited)
        for name in workers:
            [pod] = objects.running(name, 1, pods=1)
            (home(pod) / "large").write_bytes(bytes(16 * MI))
        for name in workers:
            objects.running(name, 2, pods=1, limit=2 * PATIENCE)  # kubelets look at what pods write once a minute
            [ending] = endings(objects, name)
            assert (ending["reason"], ending["counted"]) == ("Evicted", True), "it took more than it may"
            assert f"exceeds the total limit of containers {LIMIT}" in ending["message"]


def test_a_node_that_is_deleted_while_its_kubelet_lives_is_lost_and_may_come_back(objects: StandIns) -> None:
    [_, node] = running_on(objects, 2)
    objects.cluster.kubectl("delete", "node", node.name)
    objects.eventually("the attempt has ended", lambda: endings(objects))
    objects.state("arctictraining", "tiny", "Unschedulable")
    with kubelet_down(objects.cluster, node):
        pass  # one that begins anew registers its node
    until_all_ready(objects.cluster)
    second = objects.running("tiny", 2)
    assert node.name in {pod["spec"]["nodeName"] for pod in second}
    assert [(each["reason"], each["counted"]) for each in endings(objects)] == [("NodeLost", False)]
    assert f"node {node.name} of pod" in endings(objects)[0]["message"]


def is_far(objects: StandIns, kind: str) -> bool:
    """Whether an object is said to want a volume that no node may have."""
    status = objects.status(kind, "tiny")
    told = condition(status, "Degraded").get("message", "")
    return status.get("state") == "Unschedulable" and "node affinity" in told


def test_a_claim_in_another_zone_is_told_in_the_schedulers_words(objects: StandIns) -> None:
    away = {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["nowhere"]}
    name = f"{objects.namespace[:40]}-far"
    common = {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeMode": "Filesystem"}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": common
        | {
            "capacity": {"storage": "1Gi"},
            "local": {"path": "/var/empty"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [away]}]}},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "far"},
        "spec": common | {"volumeName": name, "resources": {"requests": {"storage": "1Gi"}}},
    }
    objects.cluster.apply([volume])
    try:
        objects.apply(claim)
        mounted = [{"claimName": "far", "mountPath": "/far"}, {"claimName": paths.CORPUS, "mountPath": CORPUS}]
        objects.train("tiny", template={"volumes": mounted})
        objects.serve("tiny", template={"volumes": mounted})
        for kind in ("arctictraining", "arcticinference"):
            objects.eventually("the scheduler's words are told", partial(is_far, objects, kind))
    finally:
        objects.cluster.kubectl("delete", "pv", name, "--wait=false")
