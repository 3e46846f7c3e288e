"""Real Kubernetes on one Linux machine, for the demo and the tests: etcd, the control plane, and nodes as namespaces.

Only names that others use are here.
"""

from arctic_cluster.cluster import Cluster
from arctic_cluster.errors import ClusterError

__all__ = ["Cluster", "ClusterError"]
