import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from arctic_cli.main import main
from arctic_cluster import Cluster, ClusterError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("command", [["demo"], ["cluster", "up"]])
def test_an_error_of_the_local_cluster_is_a_sentence(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise ClusterError("the disk is full: free some")

    monkeypatch.setattr(Cluster, "up", refuse)
    run = CliRunner().invoke(main, command)
    assert run.output.endswith("Error: the disk is full: free some\n")
    assert run.exit_code == 1


def test_a_manifest_is_checked_where_only_the_core_is_installed() -> None:
    hidden = "import sys; sys.modules.update(dict.fromkeys(['cryptography', 'torch', 'kubernetes', 'grpc']))"
    run = "from arctic_cli.main import main; main(['validate', '-f', 'examples/tiny-training.yaml'])"
    done = subprocess.run(
        [sys.executable, "-c", f"{hidden}\n{run}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "examples/tiny-training.yaml: ok (1 manifest)\n"), done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["plot", "PLAN", "-o", "FILE/plots"],
        ["report", "RUN", "-o", "FILE/report.html"],
        ["corpus", "FILE/corpus"],
    ],
    ids=lambda command: command[0],
)
def test_a_file_that_can_not_be_written_is_a_sentence(command: list[str], tmp_path: Path) -> None:
    file, plan, run = tmp_path / "file", tmp_path / "plan.json", tmp_path / "run"
    file.touch()
    plan.write_text(json.dumps({"stages": [], "memory": {}, "name": "n", "device": {"title": "d", "memory": 1}}))
    run.mkdir()
    (run / "journal.jsonl").touch()
    places = {"FILE": str(file), "PLAN": str(plan), "RUN": str(run)}
    filled = [
        places.get(first, first) + slash + rest for first, slash, rest in (word.partition("/") for word in command)
    ]
    told = CliRunner().invoke(main, filled)
    assert told.exit_code == 1
    assert told.output.splitlines()[-1:] == [f"Error: {filled[-1]}: Not a directory"]


def test_who_reads_no_further_ends_a_command_without_a_word() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "arctic_cli", "plan", "-f", "examples/arctic-training.yaml"]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_letters_that_a_terminal_does_not_know_end_no_command(tmp_path: Path) -> None:
    file = tmp_path / "語.yaml"
    file.write_bytes((ROOT / "examples/tiny-inference.yaml").read_bytes())
    command = [sys.executable, "-m", "arctic_cli", "validate", "-f", str(file)]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="latin-1", check=False)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/?.yaml: ok (1 manifest)\n"), done.stderr
