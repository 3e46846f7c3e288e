"""apt-get itself, with lists and lock in a folder of the test's own: nothing of the machine is touched."""

import fcntl
import shutil
import threading
from pathlib import Path

import pytest

from arctic_cluster import apt
from arctic_cluster.errors import ClusterError

pytestmark = pytest.mark.skipif(shutil.which("apt-get") is None, reason="this machine has no apt")


@pytest.fixture
def update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of an update from no source."""
    monkeypatch.setattr(apt, "_POLL_SECONDS", 0.05)
    (tmp_path / "lists" / "partial").mkdir(parents=True)
    places = {"State::Lists": tmp_path / "lists", "Etc::SourceList": "/dev/null", "Etc::SourceParts": "/dev/null"}
    return [*(word for place, path in places.items() for word in ("-o", f"Dir::{place}={path}")), "update"]


def test_a_lock_that_somebody_holds_is_waited_for(update: list[str], tmp_path: Path) -> None:
    with (tmp_path / "lists" / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=apt.get, args=update)
        waiting.start()
        waiting.join(1.0)
        assert waiting.is_alive()
    waiting.join()


def test_a_lock_that_is_held_for_too_long_is_told(
    update: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt, "_PATIENCE_SECONDS", 0.2)
    with (tmp_path / "lists" / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        with pytest.raises(ClusterError, match="Could not get lock"):
            apt.get(*update)


def test_what_is_wrong_otherwise_is_told_at_once() -> None:
    with pytest.raises(ClusterError, match="Invalid operation"):
        apt.get("no-such-operation")


def test_who_may_not_take_the_lock_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denied = "E: Could not open lock file /var/lib/apt/lists/lock - open (13: Permission denied)"
    script = f"echo '{denied}' >&2; echo 'E: Unable to lock directory' >&2; exit 100"
    (tmp_path / "apt-get").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ClusterError, match="apt-get may be run by root alone"):
        apt.get("update")
