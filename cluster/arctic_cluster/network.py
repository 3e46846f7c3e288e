"""The cluster's network on the host: namespaces, bridge, routes, rules, and faults in them.

A bridge joins the nodes' namespaces. Nothing leaves the machine: nodes have no default route, the host forwards
nothing between the bridge and any other interface, and what is sent to a pod or service that does not exist dies here.

NetworkPolicies are not enforced: the bridge plugin has no enforcer. kube-network-policies queues packets through
nf_tables, which not every kernel is built with, and its releases could not be had as Go modules when this was written.
"""

import json

from arctic_cluster import shell
from arctic_cluster.addresses import Addresses, Node
from arctic_cluster.config import inside


def routes() -> list[dict[str, object]]:
    """The host's IPv4 routes, as iproute2 lists them."""
    found: list[dict[str, object]] = json.loads(shell.run("ip", "-4", "-json", "route", "show"))
    return found


def create(addresses: Addresses) -> None:
    """Make the bridge, its rules, and every node's namespace."""
    bridge = addresses.bridge
    shell.run("ip", "link", "add", bridge, "type", "bridge")
    shell.run("ip", "address", "add", f"{addresses.gateway}/{addresses.network.prefixlen}", "dev", bridge)
    shell.run("ip", "link", "set", bridge, "up")
    for rule in _rules(addresses):
        shell.run("iptables", "--wait", "-I", *rule)
    for network in (addresses.pods, addresses.services):
        shell.run("ip", "route", "add", "blackhole", str(network))
    for node in addresses.nodes:
        _create_node(addresses, node)


def _create_node(addresses: Addresses, node: Node) -> None:
    shell.run("ip", "netns", "add", node.namespace)
    shell.run("ip", "link", "add", node.veth, "type", "veth", "peer", "name", "eth0", "netns", node.namespace)
    shell.run("ip", "link", "set", node.veth, "master", addresses.bridge, "up")
    _run_inside(node, "ip", "link", "set", "lo", "up")
    _run_inside(node, "ip", "address", "add", f"{node.address}/{addresses.network.prefixlen}", "dev", "eth0")
    _run_inside(node, "ip", "link", "set", "eth0", "up")
    # kube-proxy rewrites a service's address after the routing decision, so there must be a route to decide on.
    _run_inside(node, "ip", "route", "add", str(addresses.services), "via", str(addresses.gateway))
    for other in addresses.nodes:
        if other != node:
            _run_inside(node, "ip", "route", "add", str(other.pods), "via", str(other.address))
    shell.run("ip", "route", "add", str(node.pods), "via", str(node.address))
    _run_inside(node, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    # Else the answer of a service's backend on the same node crosses the node's bridge past kube-proxy's rules.
    _run_inside(node, "sysctl", "-q", "-w", "net.bridge.bridge-nf-call-iptables=1")


def _run_inside(node: Node, *command: str) -> None:
    shell.run(*inside(node), *command)


def _rules(addresses: Addresses) -> list[list[str]]:
    """Rules to insert, the last of them first to match: the bridge's own frames pass, all else is dropped.

    Nodes and pods reach this machine, where the API server is, though a firewall drops what it does not know.
    """
    bridge, mark = addresses.bridge, ["-m", "comment", "--comment", f"arctic-{addresses.name}"]
    return [
        ["FORWARD", "-o", bridge, *mark, "-j", "DROP"],
        ["FORWARD", "-i", bridge, *mark, "-j", "DROP"],
        ["FORWARD", "-i", bridge, "-o", bridge, *mark, "-j", "ACCEPT"],
        ["INPUT", "-i", bridge, *mark, "-j", "ACCEPT"],
    ]


def remove(addresses: Addresses) -> None:
    """Remove whatever of the cluster's network there is; no process may be left in its namespaces."""
    for node in addresses.nodes:
        shell.attempt("ip", "link", "delete", node.veth)
        shell.attempt("ip", "netns", "delete", node.namespace)
    for network in (addresses.pods, addresses.services):
        shell.attempt("ip", "route", "delete", "blackhole", str(network))
    for rule in _rules(addresses):
        while shell.attempt("iptables", "--wait", "-D", *rule):
            pass
    shell.attempt("ip", "link", "delete", addresses.bridge)


def shape(node: Node, rate: str, latency: str) -> None:
    """Limit what the node sends to `rate` (tc's units, such as 200mbit), queueing for at most `latency`."""
    limit = ["rate", rate, "burst", "64kb", "latency", latency]
    _run_inside(node, "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", *limit)


def unshape(node: Node) -> None:
    """Lift the node's limit, if it has one."""
    shell.attempt(*inside(node), "tc", "qdisc", "delete", "dev", "eth0", "root")


def cut(node: Node) -> None:
    """Pull the node's cable: everything on it runs on, and nobody reaches it."""
    shell.run("ip", "link", "set", node.veth, "down")


def mend(node: Node) -> None:
    """Plug the node's cable in again."""
    shell.run("ip", "link", "set", node.veth, "up")
