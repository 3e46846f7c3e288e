"""Processes that end with the one that started them."""

import os
import subprocess
import sys
from pathlib import Path

from arctic_workers.control.lifeline import command


def lifeline(parent: int, tmp_path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "program.py").write_text("import sys; print(sys.argv[1:], __name__)")
    command = [sys.executable, "-m", "arctic_workers.control.lifeline", str(parent), "program", "a"]
    return subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60)


def test_a_module_runs_as_if_it_had_been_started_itself(tmp_path) -> None:
    assert lifeline(os.getpid(), tmp_path).stdout == "['a'] __main__\n"


def test_a_module_does_not_start_when_who_started_it_is_gone(tmp_path) -> None:
    done = lifeline(2**22 + 1, tmp_path)  # a pid that no process has
    assert (done.returncode, done.stdout) == (1, "")


def test_files_of_the_folder_it_is_started_in_are_no_modules_of_it_nor_of_what_it_starts(tmp_path: Path) -> None:
    here, modules = tmp_path / "here", tmp_path / "modules"
    for folder in (here, modules):
        folder.mkdir()
    (here / "tokenize.py").write_text("raise SystemExit('a file of the user was run')")
    (modules / "first.py").write_text(
        "import subprocess, sys, tokenize\nsubprocess.run([sys.executable, '-m', 'second'])"
    )
    (modules / "second.py").write_text("import tokenize; print('started')")
    environment = {"PYTHONPATH": str(modules)}
    done = subprocess.run(command("first"), cwd=here, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")
