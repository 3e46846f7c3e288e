import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_api.training import ArcticTrainingSpec, LearningRate
from arctic_workers.training.curriculum import Curriculum, learning_rate, source_weights

SpecOf = Callable[..., ArcticTrainingSpec]


@given(
    budgets=st.lists(st.integers(1, 10_000), min_size=1, max_size=5),
    sequences=st.integers(1, 8),
    length=st.sampled_from([8, 16, 64]),
)
def test_every_step_has_one_stage_and_budgets_are_spent_with_less_than_a_step_over(
    spec_of: SpecOf, budgets: list[int], sequences: int, length: int
) -> None:
    tokens_per_step = sequences * length
    curriculum = Curriculum.plan(spec_of([{"tokens": b, "sequenceLength": length} for b in budgets], tokens_per_step))
    for stage, budget in zip(curriculum.stages, budgets, strict=True):
        spent = stage.tokens_done(curriculum.steps)
        assert budget <= spent < budget + tokens_per_step
        assert all(
            curriculum.stage_at(step) is stage for step in range(stage.first_step, stage.end_step, max(1, stage.steps))
        )
        assert stage.sequences_per_step == sequences
    assert curriculum.tokens_done(curriculum.steps) == curriculum.steps * tokens_per_step
    assert [curriculum.tokens_done(step) for step in (0, 1)] == [0, tokens_per_step]


def test_a_batch_that_a_stage_does_not_fit_is_refused_by_its_name(spec_of: SpecOf) -> None:
    with pytest.raises(ValueError, match="sequenceLength 48 of stage s0"):
        Curriculum.plan(spec_of([{"tokens": 100, "sequenceLength": 48}], 64))


def test_mixture_weights_are_normalised(spec_of: SpecOf) -> None:
    stages = [{"tokens": 8, "sequenceLength": 8, "mixture": {"b": 3, "a": 1}}]
    assert Curriculum.plan(spec_of(stages, 8)).stages[0].weights == {"a": 0.25, "b": 0.75}


@given(
    schedule=st.sampled_from(["cosine", "wsd", "constant"]),
    warmup=st.integers(0, 500),
    total=st.integers(1, 2000),
    tokens=st.integers(0, 2000),
)
def test_learning_rate_stays_between_zero_and_peak(schedule: str, warmup: int, total: int, tokens: int) -> None:
    rate = LearningRate.model_validate({"peak": 2.0, "final": 0.5, "warmupTokens": warmup, "schedule": schedule})
    assert 0 <= learning_rate(rate, tokens, total) <= 2.0


@pytest.mark.parametrize(
    ("schedule", "tokens", "expected"),
    [
        ("cosine", 50, 0.5),
        ("cosine", 100, 1.0),
        ("cosine", 550, (1.0 + 0.2) / 2),
        ("cosine", 1000, 0.2),
        ("wsd", 900, 1.0),
        ("wsd", 950, (1.0 + 0.2) / 2),
        ("wsd", 1000, 0.2),
        ("constant", 1000, 1.0),
    ],
)
def test_learning_rate_has_the_shape_of_its_schedule(schedule: str, tokens: int, expected: float) -> None:
    rate = LearningRate.model_validate({"peak": 1.0, "final": 0.2, "warmupTokens": 100, "schedule": schedule})
    assert math.isclose(learning_rate(rate, tokens, 1000), expected)


@pytest.mark.parametrize(("warmup", "last"), [(1000, 1.0), (2000, 0.5)])
def test_a_warm_up_that_takes_the_whole_stage_is_not_followed_by_a_decay(warmup: int, last: float) -> None:
    rate = LearningRate.model_validate({"peak": 1.0, "final": 0.2, "warmupTokens": warmup})
    assert learning_rate(rate, 1000, 1000) == last


def test_a_stage_warms_up_from_the_rate_that_the_one_before_it_ended_with(spec_of: SpecOf) -> None:
    rates = [
        {"peak": 1.0, "final": 0.2, "warmupTokens": 16},
        {"peak": 0.6, "final": 0.1, "warmupTokens": 64},
        {"peak": 0.05, "warmupTokens": 16, "schedule": "constant"},
    ]
    stages = [{"tokens": 128, "sequenceLength": 16, "learningRate": rate} for rate in rates]
    curriculum = Curriculum.plan(spec_of(stages, 16))
    found = [curriculum.stage_at(step).learning_rate(step) for step in range(curriculum.steps)]
    assert found[7:12] == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6])
    assert found[15:17] == pytest.approx([0.1, 0.05])  # a peak below is come down to


def test_a_stage_may_have_a_batch_of_its_own(spec_of: SpecOf) -> None:
    stages = [
        {"tokens": 64, "sequenceLength": 16},
        {"tokens": 64, "sequenceLength": 16, "tokensPerStep": 32},
        {"tokens": 64, "sequenceLength": 16},
    ]
    curriculum = Curriculum.plan(spec_of(stages, 16))
    assert [(stage.steps, stage.sequences_per_step) for stage in curriculum.stages] == [(4, 1), (2, 2), (4, 1)]
    assert [curriculum.tokens_done(step) for step in (4, 5, 6, 7)] == [64, 96, 128, 144]
    with pytest.raises(ValueError, match=r"^tokensPerStep 24 is not a multiple of the sequenceLength 16 of stage s0"):
        Curriculum.plan(spec_of([{"tokens": 64, "sequenceLength": 16, "tokensPerStep": 24}], 16))


def test_a_mixture_may_change_over_a_stage(spec_of: SpecOf) -> None:
    mixtures = {"mixture": {"a": 1, "b": 0}, "finalMixture": {"a": 1, "b": 3}}
    [stage] = Curriculum.plan(spec_of([{"tokens": 64, "sequenceLength": 16, **mixtures}], 16)).stages
    assert (stage.weights, stage.final_weights) == ({"a": 1.0, "b": 0.0}, {"a": 0.25, "b": 0.75})
    assert stage.mean_weights == {"a": 0.625, "b": 0.375}


def test_weights_of_sources_follow_the_stages(spec_of: SpecOf) -> None:
    stages = [{"tokens": 100, "mixture": {"a": 3, "b": 1}}, {"tokens": 100, "mixture": {"b": 1, "c": 0}}]
    sources = [{"name": n, "category": "code", "uri": f"file:///{n}"} for n in "abc"]
    spec = ArcticTrainingSpec.model_validate(spec_of(stages, 4096).wire() | {"data": {"sources": sources}})
    assert source_weights(spec) == {"a": 75, "b": 125}
