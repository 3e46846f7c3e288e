"""A local cluster of three nodes with the chart, for benchmarks of what goes on in one."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from objects import Objects

from arctic_cli.demo import install_operator
from arctic_cluster import Cluster
from arctic_cluster.errors import ClusterError
from arctic_cluster.manifests import restricted_namespace
from arctic_cluster.paths import MODELS, STORE

LACKING = 2
"""Exit code where the machine has not what a benchmark needs."""


@contextmanager
def three_nodes(name: str, *values: str) -> Iterator[Objects]:
    """Start a cluster and end it; yields its namespace of that name. Ends the process where there can be none.

    `values` are arguments to helm.
    """
    if os.geteuid() != 0:
        print("a local cluster needs root: run this with sudo", file=sys.stderr)
        sys.exit(LACKING)
    cluster = Cluster(name)
    try:
        cluster.up(nodes=3)
    except ClusterError as error:
        cluster.down()
        print(f"a local cluster can't be had here: {error}", file=sys.stderr)
        sys.exit(LACKING)
    try:
        install_operator(cluster, *values)
        cluster.apply([restricted_namespace(name)])
        cluster.create_claims(name)
        yield Objects(cluster, name)
    finally:
        folders = [cluster.volumes / claim / name for claim in (MODELS, STORE)]
        cluster.down()
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
