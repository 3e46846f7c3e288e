"""The verdict on manifests, rule by rule and as a whole."""

import math
from typing import Any, get_args

import pytest
from api_cases import ABSENT, CASES, INFERENCE, TRAINING, Case, apply_changes
from generated_manifests import changed_manifests, right_manifests
from hypothesis import HealthCheck, given, settings

from arctic_api.rule import Judge
from arctic_api.rules import NOT_YET_SUPPORTED, PRESET_EXPERTS, PRESET_KEY_VALUE_HEADS, PRESET_POSITIONS, RULES
from arctic_api.training import Preset
from arctic_api.verdict import field_problems, settle, verdict
from arctic_model.config import PRESETS

STAGE = "spec.curriculum.stages.0"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def broken(case: Case, manifest: dict[str, Any]) -> bool:
    """Say whether the verdict names the rule of the case."""
    rule = case.rule
    return any(
        problem.message == rule.message or (rule.detail and problem.field.endswith(rule.field_path.rpartition(".")[2]))
        for problem in verdict(manifest, case.old)
    )


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_rule_is_kept_and_broken(case: Case) -> None:
    assert not broken(case, case.good)
    assert broken(case, case.bad)


def test_a_queue_has_a_name_that_fits_into_the_label_of_its_jobs() -> None:
    def problems(length: int) -> list[str]:
        return [problem.field for problem in verdict(TRAINING | {"spec": TRAINING["spec"] | {"queue": "q" * length}})]

    assert (problems(63), problems(64)) == ([], ["spec.queue"])


def test_no_rule_is_left_untried() -> None:
    tried = [case.rule for case in CASES]
    assert [rule for rule in RULES if rule not in tried] == []


def test_what_is_not_yet_supported_is_said_so() -> None:
    assert all("not yet supported" in rule.message for rule in NOT_YET_SUPPORTED)


def test_what_only_the_operator_refuses_is_short() -> None:
    assert {rule.field_path for rule in RULES if rule.cel is Judge.OPERATOR} == {
        ".labels",
        ".annotations",
        ".nodeSelector",
        ".requests",
        ".limits",
        ".seeds",
        ".spec",
        ".config",
        ".curriculum.stages",
        ".data.simulatedTokens",
        ".ropeScaling",
        ".parallelism.expertParallel",
        ".parallelism.sequenceParallel",
        ".precision",
        ".batching.prefixCaching",
    }


def test_the_presets_are_those_of_the_model() -> None:
    assert set(get_args(Preset)) == set(PRESETS)
    assert {name: config.num_local_experts for name, config in PRESETS.items()} == PRESET_EXPERTS
    assert {name: config.num_key_value_heads for name, config in PRESETS.items()} == PRESET_KEY_VALUE_HEADS
    assert {name: config.max_position_embeddings for name, config in PRESETS.items()} == PRESET_POSITIONS


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(manifest=right_manifests)
def test_what_is_right_by_construction_is_accepted(manifest: dict[str, Any]) -> None:
    assert verdict(manifest) == []


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(manifest=changed_manifests())
def test_every_problem_names_a_field_and_says_something(manifest: dict[str, Any]) -> None:
    for problem in verdict(manifest):
        assert problem.field.startswith("spec")
        assert problem.message


@pytest.mark.parametrize(
    ("changes", "field", "sentence"),
    [
        ({"spec.bach": 1}, "spec.bach", "unknown field; did you mean batch?"),
        ({"spec.batch.tokens_per_step": 1}, "spec.batch.tokens_per_step", "did you mean tokensPerStep?"),
        ({"spec.batch.tokensPerStep": ABSENT}, "spec.batch.tokensPerStep", "is required"),
        ({"spec.batch.tokensPerStep": "4B"}, "spec.batch.tokensPerStep", "write G for 10^9"),
        ({"spec.batch.tokensPerStep": 4000}, "spec.batch.tokensPerStep", "such as 4096"),
        ({"spec.parallelism.nodes": "2"}, "spec.parallelism.nodes", "write a whole number"),
        ({"spec.parallelism.nodes": True}, "spec.parallelism.nodes", "write a whole number"),
        ({"spec.parallelism.nodes": 0}, "spec.parallelism.nodes", "must be greater than or equal to 1"),
        ({"spec.parallelism.zeroStage": True}, "spec.parallelism.zeroStage", "write a whole number"),
        ({"spec.suspend": "yes"}, "spec.suspend", "write true or false"),
        (
            {"spec.resources": {"limits": {"nvidia.com/gpu": "500m"}}},
            "spec.resources.limits",
            "number of nvidia.com/gpu:",
        ),
        ({"spec.template": {"affinity": {"podAntiAffinity": "x"}}}, "spec.template.affinity", "write an object"),
        ({"spec.template": {"affinity": {"podAntiAffinity": {REQUIRED: 5}}}}, "spec.template.affinity", "write a list"),
        ({"spec.template": {"affinity": {"podAffinity": {REQUIRED: [5]}}}}, "spec.template.affinity", "an object"),
        ({"spec.template": {"affinity": {"nodeAffinity": {REQUIRED: []}}}}, "spec.template.affinity", "an object"),
        ({"spec.checkpoint.volume.path": "../../up"}, "spec.checkpoint.volume.path", "without '.' and '..'"),
        ({"metadata.namespace": "../up"}, "metadata.namespace", "write the name of a namespace"),
        ({"spec.pricePerGPUHour": 2.5}, "spec.pricePerGPUHour", "write text: a number or a boolean needs quotes"),
        (
            {"spec.model.ropeScaling": {"type": "yarn", "factor": 1e308}},
            "spec.model.ropeScaling.factor",
            "less than or equal to 65536",
        ),
        ({"spec.model.preset": "arctic-tinny"}, "spec.model.preset", "did you mean arctic-tiny?"),
        ({"spec.model.preset": "arctic-tinny"}, "spec.model.preset", "arctic, arctic-466m, arctic-small, arctic-tiny"),
        ({f"{STAGE}.mixture.bookz": 1}, "spec.curriculum.stages", "stage 'general' draws from 'bookz'"),
        ({f"{STAGE}.sequenceLength": 2048}, "spec.curriculum.stages", "stage 'general' has a sequenceLength of 2048"),
        ({f"{STAGE}.mixture.books": -1}, "spec.curriculum.stages[0].mixture[books]", "greater than or equal to 0"),
        ({f"{STAGE}.mixture.books": math.inf}, "spec.curriculum.stages[0].mixture[books]", "a finite number"),
        ({"spec.optimizer.weightDecay": math.inf}, "spec.optimizer.weightDecay", "must be a finite number"),
        ({"spec.optimizer.beta1": math.inf}, "spec.optimizer.beta1", "must be a finite number"),
        ({f"{STAGE}.tokens": -1}, "spec.curriculum.stages[0].tokens", "is not a number of tokens"),
        ({"spec.startDeadline": "20min"}, "spec.startDeadline", "write a duration such as"),
        ({"spec.data.sources.0": None}, "spec.data.sources[0]", "write an object"),
        ({"spec.curriculum.stages": []}, "spec.curriculum.stages", "at least 1 item"),
        ({"spec.evaluation.suites": ["perplexity"] * 2}, "spec.evaluation.suites[1]", "is there twice"),
        ({"metadata.name": ABSENT}, "metadata.name", "is required"),
        ({"metadata.labels": {"a": "no spaces"}}, "metadata.labels", "write letters, digits"),
        ({"kind": "ArcticTrainer"}, "kind", "did you mean ArcticTraining?"),
        ({"kind": ["ArcticTraining"]}, "kind", "write ArcticTraining or ArcticInference"),
        ({"apiVersion": "arctic.dev/v1"}, "apiVersion", "write arctic.dev/v1alpha1"),
        ({"spec": ABSENT}, "spec", "is required"),
        ({"spec": []}, "spec", "write an object"),
    ],
)
def test_a_problem_says_where_it_is_and_what_to_write(changes: dict[str, Any], field: str, sentence: str) -> None:
    (problem,) = verdict(apply_changes(TRAINING, changes))
    assert problem.field.startswith(field)
    assert sentence in problem.message


def test_stages_and_sources_have_names_of_their_own() -> None:
    stage = TRAINING["spec"]["curriculum"]["stages"][0]
    source = TRAINING["spec"]["data"]["sources"][0]
    twice = {"spec.curriculum.stages": [stage, stage], "spec.data.sources": [source, source]}
    assert [problem.field for problem in verdict(apply_changes(TRAINING, twice))] == [
        "spec.data.sources[1]",
        "spec.curriculum.stages[1]",
    ]


def test_a_field_that_is_null_counts_as_left_out() -> None:
    written = apply_changes(TRAINING, {"spec.parallelism.nodes": None, "spec.startDeadline": None})
    assert verdict(written) == []
    assert "nodes" not in settle(written)["spec"]["parallelism"]


def test_null_is_kept_where_the_schema_does_not_look() -> None:
    written = apply_changes(TRAINING, {"spec.model": {"config": {"rope_scaling": None}}})
    assert settle(written)["spec"]["model"]["config"] == {"rope_scaling": None}


def test_what_is_nested_without_end_is_refused() -> None:
    nested: list[Any] = []
    for _ in range(3000):
        nested = [nested]
    (problem,) = verdict(apply_changes(TRAINING, {"spec.model": {"config": {}}}) | {"spec": {"model": nested}})
    assert str(problem) == "spec: is nested too deeply: write at most 100 levels"


def test_a_status_is_not_judged() -> None:
    assert verdict(INFERENCE | {"status": {"anything": 1}}) == []


def test_what_the_api_server_adds_to_metadata_is_no_problem() -> None:
    added = {
        "metadata.uid": "x",
        "metadata.generation": 3,
        "metadata.managedFields": [],
        "metadata.resourceVersion": "1",
    }
    assert verdict(apply_changes(TRAINING, added)) == []


def test_an_update_is_judged_beside_the_old_object() -> None:
    assert verdict(apply_changes(TRAINING, {"spec.seed": 1}), TRAINING)
    assert verdict(apply_changes(TRAINING, {"spec.suspend": True}), TRAINING) == []


def test_fields_are_judged_without_the_rules() -> None:
    assert field_problems(apply_changes(TRAINING, {"spec.curriculum.stages.0.mixture": {"nowhere": 1}})) == []
    assert [p.field for p in field_problems(apply_changes(TRAINING, {"spec.seed": "one"}))] == ["spec.seed"]
