"""The scripts of `make`, as it runs them."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder in front of PATH, for commands that say something else than the machine's."""
    folder = tmp_path / "commands"
    folder.mkdir()
    return folder


def command(folder: Path, name: str, script: str) -> None:
    """Put a shell script in the place of a command."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def bootstrap(commands: Path, cache: Path) -> subprocess.Popen[str]:
    """Start the set-up of a machine with an empty cache."""
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(cache)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([SCRIPTS / "bootstrap.sh"], env=environment, text=True, **pipes)


def test_a_small_disk_is_told_before_anything_is_downloaded(commands: Path, tmp_path: Path) -> None:
    command(commands, "df", "echo Avail; echo '  15G'")
    run = bootstrap(commands, tmp_path / "cache")
    printed, said = run.communicate()
    assert run.returncode == 1
    assert said == f"bootstrap: {tmp_path}/cache/arctic has 15 GiB free and 18 are needed: free some on its disk\n"
    assert printed == ""
    assert list((tmp_path / "cache" / "arctic" / "tools").iterdir()) == []


def test_two_set_ups_at_once_install_uv_once(commands: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    # Stands for Python: makes the environment slowly, and an interpreter and a uv in it that do nothing.
    install = f'echo "$3" >>{notes}; sleep 1; mkdir -p "$3/bin"; for it in python uv; do ln -s /bin/true "$3/bin/$it"; done'
    command(commands, "python3", f'case "$*" in *"-m venv"*) {install};; *) cat >/dev/null;; esac')
    runs = [bootstrap(commands, tmp_path / "cache") for _ in range(2)]
    (uv,) = {run.communicate()[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert Path(uv).is_file()
    assert len(notes.read_text().splitlines()) == 1
