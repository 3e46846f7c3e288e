"""What the commands say and do, without a cluster."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from arctic_cluster import state
from arctic_cluster.cluster import Cluster
from arctic_cluster.commands import cluster


@pytest.fixture(autouse=True)
def _clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with the clusters `demo` and `test`."""
    for name in ("demo", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").touch()
    monkeypatch.setattr(state, "CLUSTERS", tmp_path)


def test_all_clusters_can_be_ended_by_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cluster, "down", lambda it: True)
    assert CliRunner().invoke(cluster, ["down"]).output == "cluster demo is gone\n"
    assert CliRunner().invoke(cluster, ["down", "--all"]).output == "cluster demo is gone\ncluster test is gone\n"


def test_the_status_of_one_cluster_names_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cluster, "status", lambda it: f"cluster {it.name}")
    said = CliRunner().invoke(cluster, ["status"]).output
    assert said == "cluster demo\nother clusters of this machine: test\n"
