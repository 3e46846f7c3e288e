"""The pods' Python environment: when it is made, and what becomes of older ones."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from arctic_cluster import environment, shell
from arctic_cluster.errors import ClusterError

_GIBIBYTE = 1 << 30
_Usage = namedtuple("_Usage", "total used free")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache on a disk with three GiB free; uv installs nothing."""
    monkeypatch.setattr(environment, "cache", lambda: tmp_path)
    monkeypatch.setattr(environment, "_sync", lambda folder, *options: folder.mkdir())
    monkeypatch.setattr(shell, "uv", lambda: "uv")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: _Usage(0, 0, 3 * _GIBIBYTE))
    return tmp_path


def test_an_environment_needs_its_whole_space_where_uv_cannot_link(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "run", lambda *command: f"{cache / 'no-cache-of-uv'}\n")
    with pytest.raises(ClusterError, match=r"has 3\.0 GiB free and 6 are needed"):
        environment._dependencies("python3.11")


def test_an_environment_of_links_needs_little(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "run", lambda *command: f"{cache}\n")
    assert environment._dependencies("python3.11").is_dir()
