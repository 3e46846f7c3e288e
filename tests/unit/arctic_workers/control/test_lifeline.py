"""Processes that end with the one that started them."""

import os
import subprocess
import sys


def lifeline(parent: int, tmp_path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "program.py").write_text("import sys; print(sys.argv[1:], __name__)")
    command = [sys.executable, "-m", "arctic_workers.control.lifeline", str(parent), "program", "a"]
    return subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60)


def test_a_module_runs_as_if_it_had_been_started_itself(tmp_path) -> None:
    assert lifeline(os.getpid(), tmp_path).stdout == "['a'] __main__\n"


def test_a_module_does_not_start_when_who_started_it_is_gone(tmp_path) -> None:
    done = lifeline(2**22 + 1, tmp_path)  # a pid that no process has
    assert (done.returncode, done.stdout) == (1, "")
