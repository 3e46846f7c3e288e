"""The local cluster, for groups whose ranks are started over SSH."""

from local_cluster import cluster, namespace, operator

__all__ = ["cluster", "namespace", "operator"]
