"""Plans of ablations, over whole lives with trainings that a small world plays, and an operator that forgets all."""

import json

import pytest
from ablation_world import IDENTITY, STORE, World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_specs import TRAINING_SPEC

from arctic_ablation.study import VariantStudy
from arctic_api.ablation import MAX_TRIALS, ArcticAblationSpec, ArcticAblationStatus
from arctic_api.verdict import verdict
from arctic_operator.plan.ablation_status import invalid_status

DECAYS = [0.3, 0.1, 0.5, 0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1]
"""Weight decays, of which a world of ours has it that less is better."""

SUITES = [{"name": name, "uri": f"file:///suites/{name}"} for name in ("humaneval-plus", "ifeval", "gsm8k")]
JUDGED = {
    "training": TRAINING_SPEC | {"evaluation": {"suites": [each["name"] for each in SUITES], "data": SUITES}},
    "objective": {"suites": {"humaneval-plus": 1, "ifeval": 3}},
}
"""Of an ablation by suites; `gsm8k` is not among them."""


def spec(**fields) -> ArcticAblationSpec:
    return ArcticAblationSpec.model_validate(
        {
            "training": TRAINING_SPEC,
            "grid": [{"field": "optimizer.weightDecay", "values": DECAYS}],
            "objective": {"perplexity": {"general": 1}},
            "halving": {"first": "100k", "factor": 3},
            "parallelism": 2,
            **fields,
        }
    )


def loss(training, tokens: int) -> float:
    return 2 + training["optimizer"]["weightDecay"] + 1e5 / tokens


def world_of(**fields) -> World:
    return World(spec(**fields), loss)


def test_the_best_of_twelve_is_found_in_less_than_half_the_tokens():
    world = world_of()
    world.live()
    assert (world.status["state"], world.status["best"]) == ("Succeeded", "weightDecay=0.0")
    assert world.best["spec"]["optimizer"]["weightDecay"] == 0.0
    assert world.status["planned"] == 12
    assert world.status["tokens"] < 12 * 10**6 / 2
    assert world.status["ranking"][0]["name"] == "weightDecay=0.0"
    conditions = {each["type"]: each["status"] for each in world.status["conditions"]}
    assert conditions == {"Degraded": "False", "Succeeded": "True", "Failed": "False"}


@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_ends_first_no_rung_is_forgotten(data):
    world = world_of(parallelism=3)
    world.live(lambda running: [data.draw(st.sampled_from(running))] if running else [])
    assert world.status["best"] == "weightDecay=0.0"
    [best] = [each for each in world.status["trials"] if each["variant"] == "weightDecay=0.0"]
    assert [point["tokens"] for point in best["points"]] == [100_000, 300_000, 900_000, 1_000_000]


def test_what_a_training_came_to_is_written_before_it_goes_on():
    world = world_of(parallelism=3)
    world.visit()
    first = sorted(world.trainings)
    for name in first:
        world.train(name)
    plan = world.visit()
    assert (plan.apply, plan.requeue_after) == ((), 0.1)
    plan = world.visit()
    assert len(plan.apply) == 3
    raised = [made for made in plan.apply if made["metadata"]["name"] in first]
    assert [made["spec"]["suspendAt"] for made in raised] == [300_000]


def test_trainings_are_owned_and_labelled():
    world = world_of()
    plan = world.visit()
    for made in plan.apply:
        assert made["metadata"]["ownerReferences"][0]["uid"] == IDENTITY.uid
        assert made["kind"] == "ArcticTraining"
        assert made["metadata"]["name"].startswith("rates-")


@pytest.mark.parametrize("final", [True, False])
def test_a_training_that_failed_is_told_and_passed_over(final):
    """Also one that an edit would mend, such as one whose loss has jumped: nobody is to edit it."""
    world = world_of()
    world.visit()
    broken = world.running()[0]
    when = "2026-01-01T00:00:00Z"
    condition = {"type": "Failed", "status": "True", "reason": "Diverged", "message": "the loss is nan"}
    world.trainings[broken]["status"] = {
        "state": "Failed",
        "tokens": 10**9,
        **({"completionTime": when} if final else {}),
        "conditions": [condition | {"lastTransitionTime": when}],
    }
    world.live()
    assert world.status["state"] == "Succeeded"
    degraded = world.condition("Degraded")
    assert (degraded["status"], "the loss is nan" in degraded["message"]) == ("True", True)


def test_a_training_that_has_a_loss_that_is_no_number_is_told_and_passed_over():
    """JSON has no such numbers, so there is no figure of it."""
    world = world_of()
    world.visit()
    diverged = world.running()[0]
    world.train(diverged)
    world.trainings[diverged]["status"]["evaluation"] = {}
    world.live()
    assert (world.status["state"], world.status["best"]) == ("Succeeded", "weightDecay=0.0")
    [trial] = [each for each in world.status["trials"] if each["name"] == diverged]
    assert (trial["state"], "points" in trial) == ("Failed", False)
    assert "it has no perplexity/general: lower the learning rate" in world.condition("Degraded")["message"]


def test_where_no_training_has_a_loss_that_is_a_number_it_fails():
    world = world_of()
    for _ in range(50):
        world.visit()
        for name in world.running():
            world.train(name)
            world.trainings[name]["status"]["evaluation"] = {}
    assert (world.status["state"], world.condition("Failed")["reason"]) == ("Failed", "AllTrialsFailed")


def test_the_status_of_as_many_trainings_as_there_may_be_is_one_that_is_stored_however_long_their_words_are():
    """etcd takes 1.5 MiB, and the API server notes besides who wrote which field."""
    values = [number / MAX_TRIALS for number in range(64)]
    grid = [{"field": f"optimizer.{field}", "values": values[:most]} for field, most in (("beta1", 16), ("beta2", 64))]
    world = world_of(grid=grid)
    words = {"type": "Failed", "status": "True", "reason": "Diverged", "message": "m" * 1024}
    failed = {"state": "Failed", "conditions": [words | {"lastTransitionTime": "2026-01-01T00:00:00Z"}]}
    for run in VariantStudy(IDENTITY.name, world.spec).all_runs({}):
        metadata = {"name": run.name, "uid": run.name}
        world.trainings[run.name] = {"metadata": metadata, "spec": {}, "status": failed}
    world.visit()
    assert len(world.status["trials"]) == MAX_TRIALS
    assert {each["message"][:200] for each in world.status["trials"]} == {"m" * 200}
    assert len(json.dumps(world.status)) < 2**20


def test_a_budget_ends_it_with_a_sentence():
    world = world_of(budget="350k")
    world.live()
    assert world.status["state"] == "Failed"
    assert world.condition("Failed")["reason"] == "BudgetSpent"
    assert world.status["tokens"] <= 350_000


def test_gpu_hours_are_a_budget_by_what_a_token_has_taken_so_far():
    world = world_of(budgetGPUHours=7)
    world.live()
    assert (world.status["state"], world.condition("Failed")["reason"]) == ("Failed", "BudgetSpent")
    assert 6 < float(world.status["gpuHours"]) <= 7
    assert world.status["tokens"] <= 700_000
    world.edit(spec(budgetGPUHours=100))
    world.live()
    assert (world.status["state"], world.status["best"]) == ("Succeeded", "weightDecay=0.0")


def test_what_an_earlier_ablation_has_trained_to_its_end_is_not_trained_again():
    world = world_of(halving=None)
    world.live()
    again = world_of(halving=None, reuse="rates")
    again.earlier = ArcticAblationStatus.model_validate(world.status)
    again.live()
    assert (again.trainings, again.status["best"]) == ({}, "weightDecay=0.0")


@pytest.mark.parametrize("rungs", [0, 2])
def test_what_an_operator_could_not_read_goes_on_with_one_that_can(rungs):
    """As one of another release, before an upgrade: a field that has a default by then is in all objects."""
    world = world_of()
    world.live(until=lambda: any(len(each.get("points", ())) >= rungs for each in world.status["trials"]))
    trained = set(world.trainings)
    before = ArcticAblationStatus.model_validate(world.status)
    world.status = invalid_status(before, "spec.later: unknown field", world.generation, world.now)
    world.live()
    assert (world.status["state"], world.status["best"]) == ("Succeeded", "weightDecay=0.0")
    assert trained <= set(world.trainings)


def test_trainings_that_an_edit_has_no_place_for_go():
    world = world_of()
    world.visit()
    assert len(world.trainings) == 2
    world.edit(spec(grid=[{"field": "optimizer.weightDecay", "values": [7.0]}]))
    world.visit()
    assert [each["spec"]["optimizer"]["weightDecay"] for each in world.trainings.values()] == [7.0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"grid": [{"field": "curriculum.stages.late.tokens", "values": [1]}]}, "write one of general"),
        ({"grid": [{"field": "batch.tokensPerStep", "values": [None]}]}, "variant tokensPerStep=null: spec.batch.tok"),
    ],
)
def test_what_can_not_be_carried_out_is_said(fields, words):
    world = world_of(**fields)
    plan = world.visit()
    assert plan.apply == ()
    failed = world.condition("Failed")
    assert (failed["status"], words in failed["message"]) == ("True", True)


def test_suites_judge_each_training_where_it_rests_and_the_most_is_the_best():
    world = world_of(**JUDGED)
    world.live()
    assert (world.status["state"], world.status["best"]) == ("Succeeded", "weightDecay=0.0")
    first, *_ = world.status["ranking"]
    assert float(first["objective"]) == pytest.approx(1 - (2 + 1e5 / 10**6) / 10, abs=1e-4)
    points = [(trial["name"], point) for trial in world.status["trials"] for point in trial.get("points", ())]
    assert len(points) == len(world.evaluations)
    for name, point in points:
        evaluation = world.evaluations[point["evaluation"]]
        assert evaluation["spec"]["model"] == {"uri": f"{STORE}/{name}/checkpoints/{point['tokens']}"}
        assert [suite["name"] for suite in evaluation["spec"]["suites"]] == ["humaneval-plus", "ifeval"]
        assert evaluation["metadata"]["ownerReferences"][0]["uid"] == IDENTITY.uid
        assert verdict(evaluation) == []
    assert world.best["spec"]["evaluation"]["data"] == SUITES


def test_a_training_is_judged_before_another_takes_its_place():
    world = world_of(**JUDGED, parallelism=1)
    world.visit()
    [name] = world.running()
    world.train(name)
    world.visit()
    world.visit()

    def trial():
        return next(each for each in world.status["trials"] if each["name"] == name)

    assert (trial()["state"], world.running(), len(world.waiting())) == ("Judging", [], 1)
    world.judge(*world.waiting())
    world.visit()
    assert (trial()["state"], len(trial()["points"])) == ("Resting", 1)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda world, name: world.judge(name, ifeval="a gold answer is wrong"), "ifeval: a gold answer is wrong"),
        (lambda world, name: world.refuse(name, "/suites/ifeval is not there"), "/suites/ifeval is not there"),
    ],
)
def test_a_training_that_can_not_be_judged_is_told_and_passed_over(end, words):
    world = world_of(**JUDGED, parallelism=1)
    world.visit()
    world.train(*world.running())
    world.visit()
    [name] = world.waiting()
    end(world, name)
    world.live()
    assert world.status["state"] == "Succeeded"
    assert f"its evaluation {name}: {words}" in world.condition("Degraded")["message"]


ODD = ["?", "", "nan", "-inf", "1e999"]
"""Texts in the place of a figure, as somebody may write who edits a status."""


@pytest.mark.parametrize("odd", [*ODD, "1000000"])
@pytest.mark.parametrize("gone_on", [True, False])
def test_a_rung_of_which_somebody_has_made_no_number_is_judged_anew(odd, gone_on):
    world = world_of(parallelism=3)

    def rested():
        return [each for each in world.status["trials"] if len(each.get("points", ())) == 1 + gone_on]

    world.live(until=lambda: bool(rested()))
    for trial in rested():
        trial["points"][0]["objective"] = odd
    world.live()
    assert (world.status["state"], world.status["best"]) == ("Succeeded", "weightDecay=0.0")


@pytest.mark.parametrize("odd", [*ODD, "0", "-1"])
def test_a_training_whose_figures_somebody_has_edited_is_not_judged_until_they_are_figures(odd):
    world = world_of(parallelism=1)
    world.visit()
    [name] = world.running()
    world.train(name)
    told = world.trainings[name]["status"]["evaluation"]
    world.trainings[name]["status"] |= {"evaluation": {"perplexity/general": odd}, "gpuHours": odd}
    world.visit()
    assert f"{name}: its status.evaluation: perplexity/general is {odd!r}" in world.condition("Degraded")["message"]
    world.trainings[name]["status"]["evaluation"] = told
    world.live()
    assert (world.status["state"], world.status["best"]) == ("Succeeded", "weightDecay=0.0")
    assert world.condition("Degraded")["status"] == "False"


@pytest.mark.parametrize("odd", ODD)
def test_an_evaluation_whose_figure_somebody_has_edited_judges_nothing(odd):
    world = world_of(**JUDGED, parallelism=1)
    world.visit()
    world.train(*world.running())
    world.visit()
    [name] = world.waiting()
    world.judge(name)
    world.evaluations[name]["status"]["suites"][0]["figures"][0] |= {"value": odd}
    world.live()
    assert world.status["state"] == "Succeeded"
    assert f"its evaluation {name}: humaneval-plus is {odd!r}" in world.condition("Degraded")["message"]


def test_an_adapter_is_judged_by_its_export_and_has_no_rungs():
    model = {"from": {"uri": "file:///weights"}, "adapter": {"lora": {"rank": 8, "alpha": 16}}}
    tuned = {"training": JUDGED["training"] | {"model": model}}
    world = world_of(**JUDGED | tuned, halving=None)
    world.visit()
    name = world.running()[0]
    assert world.trainings[name]["spec"]["checkpoint"]["export"] == "huggingface"
    world.train(name)
    world.visit()
    [evaluation] = world.evaluations.values()
    assert evaluation["spec"]["model"] == {"training": name}
    world = world_of(**JUDGED | tuned)
    world.visit()
    assert "leave halving out, or judge by perplexity" in world.condition("Failed")["message"]


def test_evaluations_that_an_edit_has_no_place_for_go():
    world = world_of(**JUDGED)
    world.visit()
    for name in world.running():
        world.train(name)
    world.visit()
    assert len(world.evaluations) == 2
    world.edit(spec(**JUDGED, grid=[{"field": "optimizer.weightDecay", "values": [DECAYS[0]]}]))
    world.visit()
    assert (len(world.trainings), len(world.evaluations)) == (1, 1)
