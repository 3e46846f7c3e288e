"""Costs in a file: what is written comes back, and what is wrong is named."""

from __future__ import annotations

import json

import pytest

from arctic_model.planning import serving_time, training_time
from arctic_model.planning.costs import Costs, read_costs

COSTS = Costs(training_time.TYPICAL, serving_time.TYPICAL)


def test_costs_come_back_from_their_file(tmp_path):
    COSTS.write(tmp_path / "costs.json")
    assert read_costs(tmp_path / "costs.json") == COSTS


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"training": None}, "training must have"),
        ({"serving": {"read": 1.0}}, "serving must have attend"),
        ({"training": {**training_time.TYPICAL.__dict__, "dense": "fast"}}, "training.dense is 'fast'"),
        ({"training": {**training_time.TYPICAL.__dict__, "dense": -1.0}}, "at least 0"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, change, fault):
    path = tmp_path / "costs.json"
    COSTS.write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=fault):
        read_costs(path)


def test_a_file_that_is_no_json_is_told_how_to_make_one(tmp_path):
    (tmp_path / "costs.json").write_text("nonsense")
    with pytest.raises(ValueError, match=r"benchmarks\.planner"):
        read_costs(tmp_path / "costs.json")
