"""What the commands say and do, without a cluster."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from arctic_cluster import state
from arctic_cluster.cluster import Cluster
from arctic_cluster.commands import cluster
from arctic_cluster.errors import ClusterError


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


def test_one_cluster_that_can_not_be_ended_keeps_no_other_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo_old").mkdir()  # somebody's copy
    (tmp_path / "notes.txt").touch()
    ended = []

    def down(it: Cluster) -> bool:
        if it.name == "demo":
            raise ClusterError("its state is damaged")
        ended.append(it.name)
        return True

    monkeypatch.setattr(Cluster, "down", down)
    result = CliRunner().invoke(cluster, ["down", "--all"])
    assert ended == ["test"]
    assert result.exit_code == 1
    assert str(result.exception) == "cluster demo: its state is damaged"


def test_the_status_of_one_cluster_names_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cluster, "status", lambda it: f"cluster {it.name}")
    said = CliRunner().invoke(cluster, ["status"]).output
    assert said == "cluster demo\nother clusters of this machine: test\n"
