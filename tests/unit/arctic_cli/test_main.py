import pytest
from click.testing import CliRunner

from arctic_cli.main import main
from arctic_cluster import Cluster, ClusterError


@pytest.mark.parametrize("command", [["demo"], ["cluster", "up"]])
def test_an_error_of_the_local_cluster_is_a_sentence(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise ClusterError("the disk is full: free some")

    monkeypatch.setattr(Cluster, "up", refuse)
    run = CliRunner().invoke(main, command)
    assert run.output.endswith("Error: the disk is full: free some\n")
    assert run.exit_code == 1
