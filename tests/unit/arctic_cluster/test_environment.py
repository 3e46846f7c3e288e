"""The pods' Python environment: when it is made, and what becomes of older ones."""

import os
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
    (cache / "emptied-cache-of-uv").mkdir()
    monkeypatch.setattr(shell, "run", lambda *command: f"{cache / 'emptied-cache-of-uv'}\n")
    with pytest.raises(ClusterError, match=r"has 3\.0 GiB free and 6 are needed"):
        environment._dependencies(cache / "environments", (), "python3.11")


def test_an_environment_of_links_needs_little(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "archive-v0" / "torch").mkdir(parents=True)
    monkeypatch.setattr(shell, "run", lambda *command: f"{cache}\n")
    assert environment._dependencies(cache / "environments", (), "python3.11").is_dir()


def test_old_environments_and_what_crashes_left_go_and_what_a_cluster_links_to_stays(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = cache / "environments"
    made = [
        "newest",
        "newer",
        "last",
        "unused-one",
        "used-one",
        "dependencies-2",
        "dependencies-1",
        ".interrupted.partial",
        ".dependencies-3.partial",
    ]
    for age, name in enumerate(made):
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (1000 - age, 1000 - age))
    (tmp_path / "clusters" / "demo").mkdir(parents=True)
    (tmp_path / "clusters" / "demo" / "environment").symlink_to(folder / "used-one")
    monkeypatch.setattr(environment, "CLUSTERS", tmp_path / "clusters")
    environment._prune(folder)
    assert {path.name for path in folder.iterdir()} == {"newest", "newer", "last", "used-one", "dependencies-2"}


def test_an_environment_can_be_read_by_pods_whoever_filled_uvs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made"
    install = tmp_path / "uv"
    install.write_text(
        '#!/bin/sh\numask 077; mkdir "$UV_PROJECT_ENVIRONMENT"; touch "$UV_PROJECT_ENVIRONMENT/module.py"'
    )
    install.chmod(0o755)
    monkeypatch.setattr(shell, "uv", lambda: str(install))
    environment._sync(made)
    assert [path.stat().st_mode & 0o777 for path in (made, made / "module.py")] == [0o755, 0o644]
