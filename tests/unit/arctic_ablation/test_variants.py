"""Variants of a training, and what makes two trainings the same."""

import copy

import pytest

from arctic_ablation.variants import (
    LONGEST_NAME,
    VariantError,
    changed,
    digest,
    source_weights,
    trial,
    variants,
)
from arctic_api.verdict import verdict


def test_a_grid_has_every_combination(make):
    spec = make(grid=[{"field": "seed", "values": [1, 2]}, {"field": "batch.tokensPerStep", "values": [4096, "8k"]}])
    assert [variant.name for variant in variants(spec)] == [
        "seed=1, tokensPerStep=4096",
        "seed=1, tokensPerStep=8k",
        "seed=2, tokensPerStep=4096",
        "seed=2, tokensPerStep=8k",
    ]


def test_fields_that_end_alike_are_called_by_more_of_their_paths(make):
    fields = [f"curriculum.stages.{stage}.learningRate.peak" for stage in ("general", "late")]
    grid = [{"field": field, "values": [1e-3]} for field in (*fields, "seed")]
    [variant] = variants(make(grid=grid))
    assert variant.name == "general.learningRate.peak=0.001, late.learningRate.peak=0.001, seed=0.001"


def test_names_of_large_values_stay_short_and_apart(make):
    """All are in an ablation's status, a thousand at most."""
    stages = make().training.wire()["curriculum"]["stages"]
    values = [[stages[0] | {"tokens": number}, stages[1]] for number in (8192, 16_384)]
    grid = [{"field": "curriculum.stages", "values": values}, {"field": "optimizer.beta2", "values": [0.9, 0.95]}]
    names = [variant.name for variant in variants(make(grid=grid))]
    assert len(set(names)) == 4
    assert all(len(name) <= LONGEST_NAME for name in names)
    assert [name.rpartition(", ")[2] for name in names] == ["beta2=0.9", "beta2=0.95"] * 2
    assert all(name.startswith('stages=[{"') for name in names)
    turned = [grid[0] | {"values": values[::-1]}, grid[1]]
    assert [variant.name for variant in variants(make(grid=turned))] == names[2:] + names[:2], "whatever their order"


def test_changes_stand_beside_the_training_as_it_is(make):
    spec = make(changes=[{"name": "fast", "set": [{"field": "optimizer.beta2", "value": 0.9}]}])
    assert [variant.name for variant in variants(spec)] == ["base", "fast"]


def test_two_variants_of_one_name_are_refused(make):
    with pytest.raises(VariantError, match="'seed=1'"):
        variants(make(grid=[{"field": "seed", "values": [1, 1]}]))


def test_a_list_is_reached_by_names_and_a_null_unsets(make):
    base = make().training.wire()
    made = changed(base, [("curriculum.stages.late.mixture", {"proofs": 1}), ("tokenizer", None)])
    assert made["curriculum"]["stages"][1]["mixture"] == {"proofs": 1}
    assert "tokenizer" not in made
    assert "tokenizer" in base


@pytest.mark.parametrize(
    ("field", "words"),
    [("curriculum.stages.middle.tokens", "write one of general, late"), ("seed.x", "no object"), ("seed.x.y", "below")],
)
def test_a_path_that_leads_nowhere_is_named(make, field, words):
    with pytest.raises(VariantError, match=words):
        changed(make().training.wire(), [(field, 1)])


def test_a_trial_is_a_right_training_that_is_judged_and_exports_nothing(make):
    spec = make(target={"tokens": "1M"})
    made = trial(spec, spec.training.wire() | {"suspend": True, "ttlAfterFinished": "1m"}, 7)
    kind = {"apiVersion": "arctic.dev/v1alpha1", "kind": "ArcticTraining", "metadata": {"name": "a"}}
    assert verdict(kind | {"spec": made}) == []
    assert (made["seed"], made["checkpoint"]["export"], made["data"]["simulatedTokens"]) == (7, "none", "1M")
    assert made["evaluation"] == {"suites": ["perplexity"], "every": 2}
    assert not {"suspend", "ttlAfterFinished"} & made.keys()


def test_a_source_that_was_only_added_makes_no_other_training(make):
    spec = make()
    training = spec.training.wire()
    more = copy.deepcopy(training)
    more["data"]["sources"].append({"name": "poems", "category": "sql", "uri": "file:///poems"})
    more["curriculum"]["stages"][0]["mixture"]["poems"] = 0
    assert digest(spec, more) == digest(spec, training)
    more["curriculum"]["stages"][0]["mixture"]["poems"] = 0.1
    assert digest(spec, more) != digest(spec, training)


def test_where_held_out_text_is_a_part_of_each_source_one_more_of_the_objective_counts(make):
    spec = make()
    training = spec.training.wire()
    training["data"]["validation"] = {"fraction": 0.1}
    for category, same in (("math", True), ("sql", False)):
        more = copy.deepcopy(training)
        more["data"]["sources"].append({"name": "poems", "category": category, "uri": "file:///poems"})
        assert (digest(spec, more) == digest(spec, training)) is same


def test_what_learns_otherwise_is_another_training_and_what_only_runs_otherwise_is_not(make):
    spec = make()
    training = spec.training.wire()
    assert digest(spec, training | {"seed": 3}) != digest(spec, training)
    assert digest(spec, training | {"priorityClassName": "low", "suspendAt": 5}) == digest(spec, training)
    assert digest(spec, training | {"optimizer": {"beta1": 0.9}}) == digest(spec, training), "it is the default"


def test_the_share_of_each_source_is_that_of_its_tokens(make):
    assert source_weights(make().training.wire()) == {"books": 0.375, "python": 0.375, "proofs": 0.25}


def test_the_longest_name_leaves_room_for_trainings():
    from arctic_api.ablation import MAX_NAME
    from arctic_api.common import MAX_OBJECT_NAME

    assert MAX_NAME + len("-01234567") == MAX_OBJECT_NAME
