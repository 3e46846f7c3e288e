"""Plans of ablations, over whole lives with trainings that a small world plays, and an operator that forgets all."""

import copy
import json
import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_specs import TRAINING_SPEC

from arctic_ablation.study import VariantStudy
from arctic_ablation.variants import total_tokens
from arctic_api.ablation import ArcticAblationSpec, ArcticAblationStatus
from arctic_api.common import parse_tokens
from arctic_operator.observed import Identity
from arctic_operator.plan.ablation import plan_ablation
from arctic_operator.trials import Ablation, AblationSeen, trial_of

START = datetime(2026, 1, 1, tzinfo=UTC)
IDENTITY = Identity("ArcticAblation", "team", "rates", "0a1b2c3d-0000-4000-8000-000000000009")
DECAYS = [0.3, 0.1, 0.5, 0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1]
"""Weight decays, of which a world of ours has it that less is better."""


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


class World:
    """The API server with a controller of trainings: what the operator wrote is all that there is."""

    def __init__(self, ablation: ArcticAblationSpec) -> None:
        self.study, self.status, self.generation = VariantStudy(IDENTITY.name, ablation), {}, 1
        self.trainings: dict[str, dict] = {}
        self.seconds = 0
        self.earlier = ArcticAblationStatus()
        self.best: dict = {}

    def visit(self):
        """Let an operator that knows nothing look at it, and do what it plans."""
        self.seconds += 1
        status = ArcticAblationStatus.model_validate(copy.deepcopy(self.status))
        ablation = Ablation(IDENTITY, self.generation, False, self.study, status)
        seen = AblationSeen({name: trial_of(each) for name, each in self.trainings.items()}, self.earlier)
        plan = plan_ablation(ablation, seen, START + timedelta(seconds=self.seconds))
        for manifest in plan.apply:
            if manifest["kind"] == "ConfigMap":
                self.best = json.loads(manifest["data"]["training.json"])
                continue
            name = manifest["metadata"]["name"]
            known = self.trainings.get(name, {"metadata": {"uid": name}, "status": {}})
            self.trainings[name] = manifest | {
                "metadata": manifest["metadata"] | known["metadata"] | {"name": name},
                "status": known["status"],
            }
        for delete in plan.delete:
            del self.trainings[delete.name]
        if plan.status is not None:
            self.status = plan.status
        return plan

    def running(self) -> list[str]:
        """Trainings that are not where they may go."""
        return [name for name, each in self.trainings.items() if each["status"].get("tokens", 0) < self._goal(each)]

    def _goal(self, training: dict) -> int:
        return min(parse_tokens(training["spec"]["suspendAt"]), total_tokens(training["spec"]))

    def train(self, name: str) -> None:
        """Let a training come to where it may go."""
        training, goal = self.trainings[name], self._goal(self.trainings[name])
        loss = 2 + training["spec"]["optimizer"]["weightDecay"] + 1e5 / goal
        training["status"] = {
            "state": "Suspended" if goal < total_tokens(training["spec"]) else "Succeeded",
            "tokens": goal,
            "evaluation": {"perplexity/general": f"{math.exp(loss):.4f}"},
        }

    def live(self, draw=None, limit: int = 500) -> None:
        """Let time pass until the ablation has ended."""
        for _ in range(limit):
            self.visit()
            if self.status["state"] in ("Succeeded", "Failed"):
                return
            running = self.running()
            assert len(running) <= self.study.spec.parallelism
            for name in running if draw is None or not running else [draw(st.sampled_from(running))]:
                self.train(name)
        raise AssertionError("it has not ended")


def test_the_best_of_twelve_is_found_in_less_than_half_the_tokens():
    world = World(spec())
    world.live()
    assert (world.status["state"], world.status["best"]) == ("Succeeded", "weightDecay=0.0")
    assert world.best["spec"]["optimizer"]["weightDecay"] == 0.0
    assert world.status["planned"] == 12
    assert world.status["tokens"] < 12 * 10**6 / 2
    assert world.status["ranking"][0]["name"] == "weightDecay=0.0"
    conditions = {each["type"]: each["status"] for each in world.status["conditions"]}
    assert conditions == {"Degraded": "False", "Succeeded": "True", "Failed": "False"}


@settings(max_examples=10, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_whatever_ends_first_no_rung_is_forgotten(data):
    world = World(spec(parallelism=3))
    world.live(data.draw)
    assert world.status["best"] == "weightDecay=0.0"
    [best] = [each for each in world.status["trials"] if each["variant"] == "weightDecay=0.0"]
    assert [point["tokens"] for point in best["points"]] == [100_000, 300_000, 900_000, 1_000_000]


def test_what_a_training_came_to_is_written_before_it_goes_on():
    world = World(spec(parallelism=3))
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
    world = World(spec())
    plan = world.visit()
    for made in plan.apply:
        assert made["metadata"]["ownerReferences"][0]["uid"] == IDENTITY.uid
        assert made["kind"] == "ArcticTraining"
        assert made["metadata"]["name"].startswith("rates-")


def test_a_training_that_failed_is_told_and_passed_over():
    world = World(spec())
    world.visit()
    broken = world.running()[0]
    when = "2026-01-01T00:00:00Z"
    condition = {"type": "Failed", "status": "True", "reason": "Diverged", "message": "the loss is nan"}
    world.trainings[broken]["status"] = {
        "state": "Failed",
        "tokens": 10**9,
        "completionTime": when,
        "conditions": [condition | {"lastTransitionTime": when}],
    }
    world.live()
    assert world.status["state"] == "Succeeded"
    degraded = next(each for each in world.status["conditions"] if each["type"] == "Degraded")
    assert (degraded["status"], "the loss is nan" in degraded["message"]) == ("True", True)


def test_a_budget_ends_it_with_a_sentence():
    world = World(spec(budget="350k"))
    world.live()
    assert world.status["state"] == "Failed"
    assert next(each for each in world.status["conditions"] if each["type"] == "Failed")["reason"] == "BudgetSpent"
    assert world.status["tokens"] <= 350_000


def test_what_an_earlier_ablation_has_trained_to_its_end_is_not_trained_again():
    world = World(spec(halving=None))
    world.live()
    again = World(spec(halving=None, reuse="rates"))
    again.earlier = ArcticAblationStatus.model_validate(world.status)
    again.live()
    assert (again.trainings, again.status["best"]) == ({}, "weightDecay=0.0")


def test_trainings_that_an_edit_has_no_place_for_go():
    world = World(spec())
    world.visit()
    assert len(world.trainings) == 2
    changed = spec(grid=[{"field": "optimizer.weightDecay", "values": [7.0]}])
    world.study, world.generation = VariantStudy(IDENTITY.name, changed), 2
    world.visit()
    assert [each["spec"]["optimizer"]["weightDecay"] for each in world.trainings.values()] == [7.0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"grid": [{"field": "curriculum.stages.late.tokens", "values": [1]}]}, "write one of general"),
        ({"grid": [{"field": "batch.tokensPerStep", "values": [None]}]}, "variant tokensPerStep=null: spec.batch.tok"),
        ({"grid": None, "halving": None, "mixture": {}}, "arctic ablate"),
    ],
)
def test_what_can_not_be_carried_out_is_said(fields, words):
    world = World(spec(**fields))
    plan = world.visit()
    assert plan.apply == ()
    failed = next(each for each in world.status["conditions"] if each["type"] == "Failed")
    assert (failed["status"], words in failed["message"]) == ("True", True)
