from ipaddress import IPv4Network
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_cluster import addresses
from arctic_cluster.errors import ClusterError

NAMES = st.from_regex(r"[a-z]([-a-z0-9]{0,18}[a-z0-9])?", fullmatch=True)
INDEXES = st.integers(0, addresses.MOST_CLUSTERS - 1)
NODES = st.integers(1, addresses.MOST_NODES)
LONGEST_INTERFACE_NAME = 15


@given(NAMES, INDEXES, NODES)
def test_nodes_lie_in_their_clusters_ranges_and_share_nothing(name: str, index: int, nodes: int) -> None:
    plan = addresses.plan(name, index, nodes)
    assert [node.number for node in plan.nodes] == list(range(1, nodes + 1))
    for node in plan.nodes:
        assert node.address in plan.network
        assert node.address != plan.gateway
        assert node.pods.subnet_of(plan.pods)
    for field in ("name", "namespace", "veth", "address", "pods"):
        assert len({getattr(node, field) for node in plan.nodes}) == nodes
    assert plan.dns_service in plan.services
    assert plan.kubernetes_service in plan.services


@given(NAMES, INDEXES, NODES)
def test_interface_names_fit_the_kernel(name: str, index: int, nodes: int) -> None:
    plan = addresses.plan(name, index, nodes)
    assert all(len(link) <= LONGEST_INTERFACE_NAME for link in (plan.bridge, *(node.veth for node in plan.nodes)))


def test_no_two_clusters_share_an_address_or_an_interface() -> None:
    plans = [addresses.plan("any", index, addresses.MOST_NODES) for index in range(addresses.MOST_CLUSTERS)]
    ranges = [network for plan in plans for network in plan.ranges]
    assert not [pair for pair in combinations(ranges, 2) if pair[0].overlaps(pair[1])]
    links = [link for plan in plans for link in (plan.bridge, *(node.veth for node in plan.nodes))]
    assert len(set(links)) == len(links)


@given(st.sets(INDEXES), st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(2, 32)), max_size=4))
def test_a_new_cluster_takes_the_first_free_index_that_the_hosts_routes_leave(
    used: set[int], routed: list[tuple[int, int]]
) -> None:
    routes = [IPv4Network((address, length), strict=False) for address, length in routed]
    free = [
        index
        for index in range(addresses.MOST_CLUSTERS)
        if index not in used and not any(a.overlaps(b) for a in addresses.plan("any", index, 1).ranges for b in routes)
    ]
    if free:
        assert addresses.free_index(used, routes) == free[0]
    else:
        with pytest.raises(ClusterError, match="no address range is left"):
            addresses.free_index(used, routes)


def test_a_default_route_in_two_halves_as_a_vpn_makes_it_takes_no_range() -> None:
    routes = addresses.route_targets([{"dst": "default"}, {"dst": "0.0.0.0/1"}, {"dst": "128.0.0.0/1"}])
    assert addresses.free_index([], routes) == 0


def test_the_hosts_default_route_takes_no_range() -> None:
    routes = addresses.route_targets([{"dst": "default"}, {"dst": "10.230.0.0/24"}, {"dst": "192.0.2.7"}])
    assert addresses.free_index([], routes) == 1


@pytest.mark.parametrize("name", ["", "Demo", "3d", "demo-", "a_b", "a/b", "x" * 21])
def test_a_name_that_cannot_name_a_cluster_is_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="cluster name"):
        addresses.plan(name, 0, 2)


@pytest.mark.parametrize("nodes", [0, -1, addresses.MOST_NODES + 1])
def test_a_number_of_nodes_out_of_range_is_refused(nodes: int) -> None:
    with pytest.raises(ClusterError, match="1 to 16 nodes"):
        addresses.plan("demo", 0, nodes)


def test_a_node_is_found_by_name_and_by_number() -> None:
    plan = addresses.plan("demo", 0, 2)
    assert plan.node("demo-node2") == plan.node("2") == plan.nodes[1]
    with pytest.raises(ClusterError, match="no node 'demo-node3': name one of demo-node1, demo-node2"):
        plan.node("demo-node3")
