"""A real service keeps its promise to a client that tries nothing again while what is under it changes."""

from collections.abc import Iterator
from typing import Any

import pytest
from kept_asking import RealService, node_of
from objects import Objects, eventually
from steady_load import Asked

from arctic_api.world import Label, group_index
from arctic_cluster import Cluster
from arctic_cluster.manifests import restricted_namespace

NAMESPACE = "under-load"
PACE = 5.0
"""Requests a second: what a busy machine can answer while it also starts pods."""
LATEST = 120.0
DRAIN = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=480s")


@pytest.fixture(scope="module")
def service(operator: Cluster) -> Iterator[RealService]:
    """A service of one group of one pod."""
    operator.apply([restricted_namespace(NAMESPACE)])
    operator.create_claims(NAMESPACE)
    yield RealService(Objects(operator, NAMESPACE), 1, parallelism={"pipeline": 1})
    operator.delete_namespace(NAMESPACE, wait=False)


def number_of(pod: dict[str, Any]) -> int:
    """The number of a pod's group."""
    return group_index(pod["metadata"]["labels"][Label.GROUP])


def failures(asked: list[Asked]) -> list[str]:
    return [each.failed for each in asked if each.failed]


def test_a_node_is_emptied_of_a_group_and_of_a_gateway_and_no_request_fails(service: RealService) -> None:
    [pod] = service.pods
    node = node_of(pod)
    assert node in map(node_of, service.gateways)
    with service.asked(PACE, LATEST) as load:
        service.cluster.kubectl("drain", node, *DRAIN)
        try:
            service.until_at_rest(1)
        finally:
            service.cluster.kubectl("uncordon", node)
    [moved] = service.pods
    assert node_of(moved) != node
    assert load.asked()
    assert failures(load.asked()) == []


def test_a_group_that_is_asked_to_go_goes_once_and_no_request_fails(service: RealService) -> None:
    ask = ("arctic", "drain", service.NAME, "-n", NAMESPACE)
    [before] = service.pods
    with service.asked(PACE, LATEST) as load:
        said = service.objects.typed(*ask)
        service.until_at_rest(1)
    [after] = service.pods
    old, new = number_of(before), number_of(after)
    assert said == f"{service.NAME}: group {old} is gone\n"
    assert old != new
    assert load.asked()
    assert failures(load.asked()) == []
    with pytest.raises(AssertionError, match=f"there is no group {old}: write one of {new}, with a new token"):
        service.objects.typed(*ask, "--group", str(old))

    def told() -> bool:
        events = service.objects.kubectl("get", "events", "-o", "jsonpath={.items[*].reason}").split()
        return {"Drained", "DrainRefused"} <= set(events)

    eventually("events tell of both", told)  # beside the status
    assert service.pods[0]["metadata"]["uid"] == after["metadata"]["uid"]


def test_autoscaling_is_switched_on_and_off_and_no_request_fails(service: RealService) -> None:
    """Its gateways are replaced each time, as they are to hold requests."""
    scaling = {"min": 0, "max": 1, "target": {"queuedPerReplica": 4}, "scaleToZeroAfter": "10m"}
    gateways = {pod["metadata"]["uid"] for pod in service.gateways}
    with service.asked(PACE, LATEST) as load:
        for autoscaling in (scaling, None):
            service.change(autoscaling=autoscaling)
            service.until_at_rest(1)
            replaced = {pod["metadata"]["uid"] for pod in service.gateways}
            assert not replaced & gateways
            gateways = replaced
    assert load.asked()
    assert failures(load.asked()) == []
