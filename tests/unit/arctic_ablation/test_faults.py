"""What is wrong with trainings is said before any of them starts."""

import copy

import pytest

from arctic_ablation.faults import fault
from arctic_ablation.study import VariantStudy
from arctic_ablation.swarm.study import SwarmStudy

LATE = "curriculum.stages.late.mixture"
BOTH = {"python": 1, "proofs": 1}


@pytest.fixture
def judged(make):
    """Return what is wrong with some mixtures of the late stage, or other values, that a category judges."""

    def judged(category, *values, field=LATE, validation="a share"):
        training = copy.deepcopy(make().training.wire())
        if validation == "a share":
            training["data"]["validation"] = {"fraction": 0.1}
        grid = [{"field": field, "values": list(values)}]
        return fault(VariantStudy("mixtures", make(training=training, grid=grid, objective={"perplexity": category})))

    return judged


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("optimizer.weightDecay", -1, "variant weightDecay=-1: spec.optimizer.weightDecay: "),
        ("curriculum.stages.late.tokens", "many", "variant tokens=many: spec.curriculum.stages[1].tokens: "),
        ("curriculum.stages.late.mixture", {"poems": 1}, "draws from 'poems': there is no such source"),
        ("curriculum.stages.last.tokens", 1, "nothing is called 'last'"),
    ],
)
def test_a_variant_that_is_no_right_training_is_named(make, field, value, words):
    assert words in fault(VariantStudy("rates", make(grid=[{"field": field, "values": [value]}])))


def test_right_ones_have_no_fault(make):
    assert fault(VariantStudy("rates", make())) is None


def test_a_null_within_a_value_is_a_field_that_is_left_out_as_in_a_manifest(make):
    grid = [{"field": LATE, "values": [{"python": 1, "proofs": None}]}]
    study = VariantStudy("mixtures", make(grid=grid))
    assert fault(study) is None
    [run] = study.all_runs({})
    assert run.training["curriculum"]["stages"][1]["mixture"] == {"python": 1}


def test_a_variant_that_draws_from_nothing_of_a_category_is_named_with_what_to_write(judged):
    assert judged({"general": 1, "math": 1}, BOTH, {"python": 1}) == (
        "variant mixture=python:1: objective.perplexity: no stage draws from a source of the category math, so none of "
        "its text is held out (but of code, general): give such a source a weight in a stage, write one into "
        "training.data.validation.sources, in place of fraction, or leave math out of the objective"
    )


def test_a_weight_of_zero_draws_nothing(judged):
    assert "of the category math" in judged({"math": 1}, {"python": 1, "proofs": 0})


def test_a_variant_is_judged_by_what_any_of_its_stages_draws_from_at_its_start_or_its_end(judged):
    assert judged({"general": 1, "code": 1, "math": 1}, BOTH) is None
    final = {"python": 1, "proofs": 1}
    assert judged({"math": 1}, final, field="curriculum.stages.late.finalMixture") is None


def test_a_share_is_held_out_where_a_manifest_or_a_variant_says_nothing_of_validation(judged):
    assert judged({"math": 1}, None, field="data.validation", validation="as it is") is None
    assert "of the category sql" in judged({"sql": 1}, None, field="data.validation", validation="as it is")


def test_sources_of_validation_judge_by_their_categories_alone(judged):
    assert judged({"sql": 1}, BOTH, validation="as it is") is None
    assert judged({"sql": 1, "math": 1}, BOTH, validation="as it is") == (
        "variant mixture=python:1 proofs:1: objective.perplexity: training.data.validation.sources has none of the "
        "category math (but of sql): write one there, or leave math out of the objective"
    )


def test_suites_need_no_held_out_text(make):
    grid = [{"field": LATE, "values": [{"python": 1}]}]
    assert fault(VariantStudy("mixtures", make(grid=grid, objective={"suites": {"ifeval": 1}}))) is None


def test_of_a_swarm_the_mixtures_by_hand_are_judged_too(make):
    training = copy.deepcopy(make().training.wire())
    training["data"]["validation"] = {"fraction": 0.1}
    swarm = {"training": training, "mixture": {"runs": 8, "around": {"books": 1, "python": 1, "proofs": 1}}}
    assert fault(SwarmStudy("swarm", make(**swarm, objective={"perplexity": {"math": 1}}))) is None
    assert fault(SwarmStudy("swarm", make(**swarm, objective={"perplexity": {"sql": 1}}))).startswith(
        "variant by hand: objective.perplexity: no stage draws from a source of the category sql"
    )
