"""Names and addresses of one cluster, planned from its name and index. Pure: no file, no command, no clock.

Everything that a cluster puts on the machine is named here, so that two clusters never touch each other's and so that
`down` knows what to remove.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from arctic_cluster.errors import ClusterError

MOST_CLUSTERS = 8
MOST_NODES = 16
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,18}[a-z0-9])?")


@dataclass(frozen=True)
class Node:
    """One node: a network namespace with a veth into the cluster's bridge. `number` counts from 1."""

    name: str
    number: int
    namespace: str
    veth: str
    address: IPv4Address
    pods: IPv4Network


@dataclass(frozen=True)
class Addresses:
    """All names and ranges of the cluster `name`, the `index`-th on this machine."""

    name: str
    index: int
    bridge: str
    network: IPv4Network
    pods: IPv4Network
    services: IPv4Network
    nodes: tuple[Node, ...]

    @property
    def gateway(self) -> IPv4Address:
        """The host's address on the bridge: the API server listens there, and only there."""
        return self.network[1]

    @property
    def kubernetes_service(self) -> IPv4Address:
        """The ClusterIP of `kubernetes.default`: Kubernetes takes the first of the range."""
        return self.services[1]

    @property
    def dns_service(self) -> IPv4Address:
        """The ClusterIP of the cluster's DNS."""
        return self.services[10]

    @property
    def cgroup(self) -> str:
        """The cgroup, relative to a hierarchy's root, that holds every process of the cluster."""
        return f"arctic-{self.name}"

    @property
    def ranges(self) -> tuple[IPv4Network, ...]:
        """The ranges that must be nobody else's."""
        return (self.network, self.pods, self.services)

    def node(self, which: str) -> Node:
        """The node with that name or number."""
        for node in self.nodes:
            if which in (node.name, str(node.number)):
                return node
        names = ", ".join(node.name for node in self.nodes)
        raise ClusterError(f"cluster {self.name} has no node {which!r}: name one of {names}, or its number")


def is_name(name: str) -> bool:
    """Whether interfaces, cgroups and node names can be made from a cluster's name."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> None:
    """Refuse a cluster name from which interfaces, cgroups and node names cannot be made."""
    if not is_name(name):
        raise ClusterError(
            f"the cluster name {name!r} does not do: take at most 20 of a-z, 0-9 and '-', "
            "starting with a letter and not ending with '-'"
        )


def plan(name: str, index: int, nodes: int) -> Addresses:
    """Names and ranges of a cluster. `index` is 0..7 and `nodes` 1..16."""
    check_name(name)
    if not 0 <= index < MOST_CLUSTERS:
        raise ClusterError(f"the cluster index must be 0 to {MOST_CLUSTERS - 1}, not {index}")
    if not 1 <= nodes <= MOST_NODES:
        raise ClusterError(
            f"a local cluster has 1 to {MOST_NODES} nodes, not {nodes}: give --nodes a number in between"
        )
    network = IPv4Network(f"10.{230 + index}.0.0/24")
    pods = IPv4Network(f"10.{244 + index}.0.0/16")
    return Addresses(
        name=name,
        index=index,
        bridge=f"arctic{index}",
        network=network,
        pods=pods,
        services=IPv4Network(f"10.{96 + index}.0.0/16"),
        nodes=tuple(_node(name, index, number, network) for number in range(1, nodes + 1)),
    )


def _node(name: str, index: int, number: int, network: IPv4Network) -> Node:
    return Node(
        name=f"{name}-node{number}",
        number=number,
        namespace=f"arctic-{name}-node{number}",
        veth=f"arctic{index}n{number}",
        address=network[10 + number],
        pods=IPv4Network(f"10.{244 + index}.{number}.0/24"),
    )


def free_index(used: Iterable[int], routes: Iterable[IPv4Network]) -> int:
    """The smallest index that no cluster uses and whose ranges no route of the host overlaps.

    A default route, whole or in the two halves that a VPN makes of it, overlaps nothing: it is what is taken when no
    other matches.
    """
    taken = set(used)
    specific = [route for route in routes if route.prefixlen > 1]
    for index in range(MOST_CLUSTERS):
        ranges = plan("any", index, 1).ranges
        if index not in taken and not any(a.overlaps(b) for a in ranges for b in specific):
            return index
    raise ClusterError(
        f"no address range is left: {len(taken)} of {MOST_CLUSTERS} clusters exist and the host routes "
        "the other ranges; take a cluster down (`arctic cluster down --name NAME`)"
    )


def route_targets(routes: Iterable[dict[str, object]]) -> list[IPv4Network]:
    """The networks of `ip -json route`."""
    targets = (str(route["dst"]) for route in routes)
    return [IPv4Network("0.0.0.0/0" if dst == "default" else dst, strict=False) for dst in targets]
