import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arctic_cluster import shell
from arctic_cluster.errors import ClusterError


def test_uv_is_the_one_that_make_uses_where_none_is_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "bootstrap.sh"
    script.write_text("#!/bin/sh\necho /cache/uv\n")
    script.chmod(0o755)
    monkeypatch.setattr(shell, "CHECKOUT", tmp_path)
    monkeypatch.setattr(shell.shutil, "which", lambda command: None)
    monkeypatch.delenv("UV", raising=False)
    assert shell.uv() == "/cache/uv"
    monkeypatch.setenv("UV", "/my/uv")
    assert shell.uv() == "/my/uv"


def test_a_command_that_is_broken_off_by_a_person_may_tidy_up(tmp_path: Path) -> None:
    trap = f"trap 'sleep 1; touch {tmp_path}/tidy; exit 1' INT"
    # It has begun once it has read what it is given, for then it is waited for.
    script = f"{trap}; read line; touch {tmp_path}/begun; while :; do sleep 0.1; done"
    # A handler of its own: the tests may run where Ctrl-C is ignored.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"from arctic_cluster import shell; shell.run('sh', '-c', {script!r}, stdin='line')"
    )
    run = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "begun").exists():
        assert run.poll() is None
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)
    assert "KeyboardInterrupt" in run.communicate()[1]
    assert (tmp_path / "tidy").exists()


def test_what_a_command_is_given_reaches_it() -> None:
    assert shell.run("cat", stdin="text" * 100_000) == "text" * 100_000


def test_what_a_command_says_need_be_no_text() -> None:
    assert shell.run("printf", r"caf\351") == "caf\ufffd"
    with pytest.raises(ClusterError, match="exit code 3: caf\ufffd"):
        shell.run("sh", "-c", r"printf 'caf\351' >&2; exit 3")


def test_a_failing_command_is_told_with_what_it_said() -> None:
    with pytest.raises(ClusterError, match="exit code 3: sorry"):
        shell.run("sh", "-c", "echo sorry >&2; exit 3")
    with pytest.raises(ClusterError, match="'no-such-command' is not on this machine"):
        shell.run("no-such-command")
