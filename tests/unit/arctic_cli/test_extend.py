"""A larger budget by `arctic extend`: the patch that is sent, and what is refused before any is."""

from typing import Any

import click
import pytest
from api_cases import TRAINING, apply_changes

from arctic_cli.extend import larger_budget

STAGE = TRAINING["spec"]["curriculum"]["stages"][0]
MANIFEST = apply_changes(TRAINING, {"spec.curriculum.stages": [STAGE, STAGE | {"name": "later"}]})
STEPS = 245  # of each stage


def at(step: int, **changes: Any) -> dict[str, Any]:
    """The training once that step is done."""
    return apply_changes(MANIFEST, {"status": {"state": "Running", "step": step}, **changes})


@pytest.mark.parametrize(("index", "stage", "step"), [(0, "general", 0), (0, "general", 100), (1, "later", 100)])
def test_a_stage_under_way_or_to_come_gets_its_budget_if_nobody_was_faster(index: int, stage: str, step: int) -> None:
    place = f"/spec/curriculum/stages/{index}"
    assert larger_budget(at(step), stage, "1.5M") == [
        {"op": "test", "path": f"{place}/name", "value": stage},
        {"op": "test", "path": f"{place}/tokens", "value": "1M"},
        {"op": "replace", "path": f"{place}/tokens", "value": "1.5M"},
    ]


def test_a_training_that_has_not_begun_is_extended() -> None:
    assert larger_budget(MANIFEST, "general", "2M")[-1]["value"] == "2M"


RAMP = {"spec.curriculum.stages.0.finalMixture": {"books": 1}}
SIMULATED = {"spec.data.simulatedTokens": "10M"}


@pytest.mark.parametrize(
    ("manifest", "stage", "tokens", "says"),
    [
        (at(1), "genral", "2M", "no stage 'genral': spec.curriculum.stages has general, later"),
        (at(1), "general", "2B", "'2B' is not a number of tokens"),
        (at(1), "general", "1000k", "stage general has 1M tokens: write more, as 1000k is its whole budget"),
        (at(STEPS), "general", "2M", r"the workers would refuse it: .* curriculum.stages\[0\].tokens 1000000"),
        (at(100, **RAMP), "general", "2M", r"the workers would refuse it: .* curriculum.stages\[0\].tokens 1000000"),
        (at(100, **SIMULATED), "later", "2M", "the workers would refuse it: .* data.simulatedTokens, as a share, 0.2"),
        (
            apply_changes(MANIFEST, {"status": {"state": "Succeeded", "completionTime": "2026-01-02T03:04:05Z"}}),
            "later",
            "2M",
            r"ended at 2026-01-02T03:04:05Z \(Succeeded\)",
        ),
    ],
)
def test_what_can_not_be_extended_is_said_before_it_is_written(
    manifest: dict[str, Any], stage: str, tokens: str, says: str
) -> None:
    with pytest.raises(click.ClickException, match=says):
        larger_budget(manifest, stage, tokens)
