"""The scripts of `make`, as it runs them, on a machine whose Python makes environments that do nothing."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Machine:
    """An empty cache, and commands in front of the real ones."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache" / "arctic"
        self.installed = folder / "installed"
        self._commands = folder / "commands"
        self._commands.mkdir()
        self.put("df", "echo Avail; echo '  20G'")
        make = 'mkdir -p "$3/bin"; for it in python uv; do ln -s /bin/true "$3/bin/$it"; done'
        install = f'echo "$3" >>{self.installed}; sleep 1; {make}'
        self.put("python3", f'case "$*" in *"-m venv"*) {install};; *) cat >/dev/null;; esac')

    def put(self, name: str, script: str) -> None:
        """Put a shell script in the place of a command."""
        (self._commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (self._commands / name).chmod(0o755)

    def start(self, *command: str | Path) -> subprocess.Popen[str]:
        """Start a command in the tree."""
        path = f"{self._commands}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(self.cache.parent)}
        environment.pop("ARCTIC_PHASES", None)  # of a benchmark that runs this
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_small_disk_is_told_before_anything_is_downloaded(machine: Machine) -> None:
    machine.put("df", "echo Avail; echo '  7G'")
    run = machine.start("scripts/bootstrap.sh")
    printed, said = run.communicate()
    assert run.returncode == 1
    assert said == f"bootstrap: {machine.cache} has 7 GiB free and 8 are needed: free some on its disk\n"
    assert printed == ""
    assert not machine.installed.exists()


def test_a_disk_that_our_own_caches_have_filled_is_no_hindrance_to_a_newer_uv(machine: Machine) -> None:
    (machine.cache / "tools" / "uv-0.1.0").mkdir(parents=True)
    machine.put("df", "echo Avail; echo '  7G'")
    run = machine.start("scripts/bootstrap.sh")
    run.communicate()
    assert run.returncode == 0


def test_two_set_ups_at_once_install_uv_once(machine: Machine) -> None:
    runs = [machine.start("scripts/bootstrap.sh") for _ in range(2)]
    (uv,) = {run.communicate()[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert Path(uv).is_file()
    assert len(machine.installed.read_text().splitlines()) == 1


def test_packages_are_installed_once_whoever_else_installs_is_done(machine: Machine) -> None:
    machine.put("python3", 'case "$*" in *ensurepip*) exit 1;; *"-m venv"*) exit 3;; *) cat >/dev/null;; esac')
    locked = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1 (apt)"
    held = machine.installed.with_name("held")
    held.touch()
    machine.put(
        "apt-get", f'if rm {held} 2>/dev/null; then echo "{locked}" >&2; exit 100; fi; echo "$1" >>{machine.installed}'
    )
    machine.start("scripts/bootstrap.sh").communicate()
    assert machine.installed.read_text().split() == ["update", "install"]


def test_what_else_keeps_a_package_from_being_installed_is_told_at_once(machine: Machine) -> None:
    machine.put("python3", 'case "$*" in *ensurepip*) exit 1;; *) cat >/dev/null;; esac')
    machine.put("apt-get", "echo 'E: Unable to locate package' >&2; exit 100")
    run = machine.start("scripts/bootstrap.sh")
    assert "E: Unable to locate package" in run.communicate()[1]
    assert run.returncode == 1


def test_who_may_not_install_is_told_so_at_once(machine: Machine) -> None:
    machine.put("python3", 'case "$*" in *ensurepip*) exit 1;; *) cat >/dev/null;; esac')
    denied = "E: Could not open lock file /var/lib/apt/lists/lock - open (13: Permission denied)"
    machine.put("apt-get", f"echo '{denied}' >&2; echo 'E: Unable to lock directory /var/lib/apt/lists/' >&2; exit 100")
    run = machine.start("scripts/bootstrap.sh")
    assert "bootstrap: apt-get may be run by root alone" in run.communicate()[1]
    assert run.returncode == 1


def test_what_runs_without_a_cluster_is_set_up_without_building_one(machine: Machine) -> None:
    printed, _ = machine.start("make", "-n", "setup-local").communicate()
    assert "uv sync" in printed
    assert "arctic corpus" in printed
    assert "arctic cluster" not in printed


def test_a_phase_is_noted_only_where_somebody_asks(machine: Machine, tmp_path: Path) -> None:
    quiet, noted = (
        machine.start("env", *variables, "scripts/phase.sh", "lint", "true")
        for variables in ([], [f"ARCTIC_PHASES={tmp_path / 'phases'}"])
    )
    for run in (quiet, noted):
        assert "== lint done in" in run.communicate()[0]
    assert not machine.cache.exists()
    (note,) = (tmp_path / "phases").read_text().splitlines()
    assert json.loads(note)["phase"] == "lint"


def test_a_relative_cache_is_none(machine: Machine, tmp_path: Path) -> None:
    run = machine.start("env", f"HOME={tmp_path}", "XDG_CACHE_HOME=here", "scripts/bootstrap.sh")
    assert run.communicate()[0].startswith(f"{tmp_path}/.cache/arctic/tools/")


def test_every_module_that_make_runs_is_there() -> None:
    named = set(re.findall(r"python -m (benchmarks\.\w+)", (ROOT / "Makefile").read_text()))
    assert named
    assert not [name for name in named if not (ROOT / f"{name.replace('.', '/')}.py").is_file()]
