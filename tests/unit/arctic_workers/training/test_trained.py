import json
from collections.abc import Callable
from typing import Any

import pytest

from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import CORRECTABLE
from arctic_workers.training.curriculum import Curriculum
from arctic_workers.training.errors import Refused
from arctic_workers.training.trained import check_same, trained_with

SpecOf = Callable[..., ArcticTrainingSpec]

STAGES: list[dict[str, Any]] = [{"tokens": 64, "sequenceLength": 16}, {"tokens": 64, "sequenceLength": 16}]
STEP = 3  # of four in the first stage


@pytest.fixture
def kept(spec_of: SpecOf) -> dict[str, Any]:
    """What a checkpoint of step 3 keeps, as it is read back."""
    stages = Curriculum.plan(spec_of(STAGES, 16)).stages
    content: dict[str, Any] = json.loads(json.dumps(trained_with(7, stages[:1])))
    return content


def changed(**first: Any) -> list[dict[str, Any]]:
    return [STAGES[0] | first, STAGES[1]]


@pytest.mark.parametrize(
    ("stages", "tokens_per_step", "seed", "says"),
    [
        (STAGES, 32, 7, r"step 3 was trained with tokensPerStep of .*stages\[0\] 16, and .* says 32"),
        (changed(tokensPerStep=32), 16, 7, r"tokensPerStep of .*stages\[0\] 16, and the manifest says 32"),
        (changed(finalMixture={"a": 1}), 16, 7, r'finalMixture null, and the manifest says {"a": 1.0}'),
        (STAGES, 16, 8, "seed 7, and the manifest says 8"),
        (changed(name="renamed"), 16, 7, r'curriculum.stages\[0\].name "s0", and the manifest says "renamed"'),
        (changed(tokens=48), 16, 7, r"curriculum.stages\[0\].tokens 64, and the manifest says 48"),
        (changed(sequenceLength=8), 16, 7, r"curriculum.stages\[0\].sequenceLength 16, and the manifest says 8"),
        (changed(mixture={"b": 1}), 16, 7, r'stages\[0\].mixture {"a": 1.0}, and the manifest says {"b": 1.0}'),
    ],
)
def test_a_manifest_that_rewrites_what_was_trained_is_refused_with_the_field(
    spec_of: SpecOf, kept: dict[str, Any], stages: list[dict[str, Any]], tokens_per_step: int, seed: int, says: str
) -> None:
    with pytest.raises(Refused, match=says) as refused:
        check_same(kept, seed, Curriculum.plan(spec_of(stages, tokens_per_step)), STEP)
    assert refused.value.reason in CORRECTABLE


def test_a_checkpoint_of_sequences_that_were_cut_otherwise_is_refused(spec_of: SpecOf, kept: dict[str, Any]) -> None:
    del kept["streams"]  # as when sequences ran across documents
    with pytest.raises(Refused, match=r"step 3 was trained on sequences of version 1, and .* version 2: finish"):
        check_same(kept, 7, Curriculum.plan(spec_of(STAGES, 16)), STEP)


def test_another_share_of_the_sources_is_refused(spec_of: SpecOf, kept: dict[str, Any]) -> None:
    spec = spec_of(STAGES, 16)
    simulating = spec.model_copy(update={"data": spec.data.model_copy(update={"simulated_tokens": 1280})})
    with pytest.raises(Refused, match=r"simulatedTokens, as a share, 1.0, and the manifest says 0.1"):
        check_same(kept, 7, Curriculum.plan(simulating), STEP)


@pytest.mark.parametrize("tokens", [49, 64, 6400])
def test_the_budget_of_the_stage_under_way_may_change_down_to_what_is_trained(
    spec_of: SpecOf, kept: dict[str, Any], tokens: int
) -> None:
    check_same(kept, 7, Curriculum.plan(spec_of(changed(tokens=tokens), 16)), STEP)


def test_the_budget_of_a_stage_that_is_over_may_not_change(spec_of: SpecOf, kept: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=r"stages\[0\].tokens 64, and the manifest says 128"):
        check_same(kept, 7, Curriculum.plan(spec_of(changed(tokens=128), 16)), STEP + 1)


def test_a_batch_that_the_stage_says_itself_now_is_the_same(spec_of: SpecOf, kept: dict[str, Any]) -> None:
    check_same(kept, 7, Curriculum.plan(spec_of(changed(tokensPerStep=16), 32)), STEP)


def test_learning_rates_and_stages_to_come_may_change(spec_of: SpecOf, kept: dict[str, Any]) -> None:
    later = {"name": "another", "tokens": 16, "sequenceLength": 8, "mixture": {"b": 1}}
    stages = [changed(learningRate={"peak": 0.5}, mixture={"a": 2})[0], later, later | {"name": "more"}]
    check_same(kept, 7, Curriculum.plan(spec_of(stages, 16)), STEP)
