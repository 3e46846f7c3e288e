"""Two network namespaces joined by a link whose rate is set, as two nodes are. It takes root, `ip` and `tc`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from arctic_cluster import shell

NAMESPACES = ("arctic-benchmark-0", "arctic-benchmark-1")
ADDRESSES = ("198.18.0.1", "198.18.0.2")
"""Of the range that is set aside for benchmarks (RFC 2544)."""
DEVICE = "eth0"
"""Its name at both ends."""


@dataclass(frozen=True)
class Link:
    """A link between two namespaces."""

    inside: tuple[tuple[str, ...], ...]
    """What takes a command into each of them."""

    def shape(self, rate: str | None) -> None:
        """Let each end send at a rate in tc's words, or as fast as it can. Raises ClusterError."""
        for enter in self.inside:
            shell.attempt(*enter, "tc", "qdisc", "delete", "dev", DEVICE, "root")
            if rate is not None:
                shape = ("tbf", "rate", rate, "burst", "128kb", "latency", "50ms")
                shell.run(*enter, "tc", "qdisc", "add", "dev", DEVICE, "root", *shape)


@contextmanager
def link(rate: str | None = None) -> Iterator[Link]:
    """Make two namespaces and the link between them, and remove them in any case. Raises ClusterError."""
    with ExitStack() as stack:
        for namespace in NAMESPACES:
            shell.attempt("ip", "netns", "delete", namespace)
            shell.run("ip", "netns", "add", namespace)
            stack.callback(shell.attempt, "ip", "netns", "delete", namespace)
        inside = tuple(("nsenter", f"--net=/run/netns/{namespace}") for namespace in NAMESPACES)
        ends = [(DEVICE, "netns", namespace) for namespace in NAMESPACES]
        shell.run("ip", "link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
        for enter, address in zip(inside, ADDRESSES, strict=True):
            shell.run(*enter, "ip", "address", "add", f"{address}/30", "dev", DEVICE)
            for device in ("lo", DEVICE):
                shell.run(*enter, "ip", "link", "set", device, "up")
        made = Link(inside)
        made.shape(rate)
        yield made
