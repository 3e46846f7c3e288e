"""The guide's table of what an edit does, held to what workers make of the manifest in the next attempt."""

import json
from typing import Any

import pytest
from api_cases import TRAINING, apply_changes
from edits import EDITS, ONLY_AHEAD, table

from arctic_api.training import ArcticTrainingSpec
from arctic_workers.training.curriculum import Curriculum
from arctic_workers.training.errors import Refused
from arctic_workers.training.trained import check_same, trained_with

STAGE = TRAINING["spec"]["curriculum"]["stages"][0]
OLD = apply_changes(TRAINING, {"spec.curriculum.stages": [STAGE, STAGE | {"name": "later"}]})
EFFECTS = table()
UNDER_WAY = 100  # of 245 steps of the first stage
IN_THE_SECOND = 300
ALLOWED = [field for field, effect in EFFECTS.items() if effect not in (ONLY_AHEAD, "refused")]
OF_A_STAGE = [field for field in EDITS if field.startswith("curriculum.stages.")]


def refusal(changes: dict[str, Any], step: int, old: dict[str, Any] = OLD) -> str | None:
    """What workers say to an edited manifest that find the checkpoint of a step of the old one."""
    before, after = (
        ArcticTrainingSpec.model_validate(manifest["spec"]) for manifest in (old, apply_changes(old, changes))
    )
    planned = Curriculum.plan(before)
    begun = [stage for stage in planned.stages if stage.first_step < step]
    kept = json.loads(json.dumps(trained_with(before.seed, begun, planned.share)))
    try:
        check_same(kept, after.seed, Curriculum.plan(after), step)
    except Refused as error:
        return error.message
    return None


def ahead(field: str) -> dict[str, Any]:
    """The edit of a field in the second stage."""
    return {path.replace("stages.0", "stages.1"): value for path, value in EDITS[field].items()}


@pytest.mark.parametrize("field", ALLOWED)
def test_what_the_guide_allows_is_trained(field: str) -> None:
    assert refusal(EDITS[field], UNDER_WAY) is None
    assert refusal(EDITS[field], IN_THE_SECOND) is None


@pytest.mark.parametrize("field", [field for field, effect in EFFECTS.items() if effect == ONLY_AHEAD])
def test_what_has_been_trained_is_changed_by_no_edit(field: str) -> None:
    assert "can't be changed" in (refusal(EDITS[field], IN_THE_SECOND) or "")


@pytest.mark.parametrize("field", OF_A_STAGE)
def test_a_stage_that_has_not_begun_may_become_another(field: str) -> None:
    assert EFFECTS[field] == ONLY_AHEAD
    assert refusal(ahead(field), UNDER_WAY) is None


def test_the_batch_may_change_where_the_stages_that_have_begun_have_their_own() -> None:
    own = apply_changes(OLD, {"spec.curriculum.stages.0.tokensPerStep": 4096})
    assert refusal(EDITS["batch.tokensPerStep"], UNDER_WAY, own) is None


BUDGET = "curriculum.stages.tokens"


def test_the_budget_of_the_stage_under_way_may_change_unless_its_mixture_does() -> None:
    assert refusal(EDITS[BUDGET], UNDER_WAY) is None
    ramped = apply_changes(OLD, {"spec.curriculum.stages.0.finalMixture": {"books": 1}})
    assert "stages[0].tokens" in (refusal(EDITS[BUDGET], UNDER_WAY, ramped) or "")


@pytest.mark.parametrize("changes", [EDITS[BUDGET], ahead(BUDGET), {"spec.curriculum.stages": [STAGE]}])
def test_a_run_that_stands_for_a_larger_one_keeps_the_sum_of_its_budgets(changes: dict[str, Any]) -> None:
    simulating = apply_changes(OLD, EDITS["data.simulatedTokens"])
    assert "data.simulatedTokens, as a share" in (refusal(changes, UNDER_WAY, simulating) or "")


def test_a_simulated_budget_that_grows_with_the_run_is_the_same() -> None:
    simulating = apply_changes(OLD, EDITS["data.simulatedTokens"])
    assert refusal(ahead(BUDGET) | {"spec.data.simulatedTokens": "15M"}, UNDER_WAY, simulating) is None
