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
