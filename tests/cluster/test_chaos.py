"""A short seeded campaign of faults; `make chaos` runs a long one."""

import json

import pytest
from chaos import Campaign
from stand_in import StandIns

from arctic_cluster import Cluster


@pytest.mark.timeout(0)  # as long as the faults that are asked for take
def test_faults_break_no_invariant_and_everything_comes_to_where_its_manifest_says(
    operator: Cluster, stand_in: None, namespace: str, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    faults, seed = pytestconfig.getoption("--faults"), pytestconfig.getoption("--seed")
    say(f"\nseed {seed}, {faults} faults")
    outcome = Campaign(StandIns(operator, namespace), seed, say).run(faults)
    say(json.dumps(outcome.figures()))
    assert (outcome.violations, outcome.unconverged) == ([], [])
