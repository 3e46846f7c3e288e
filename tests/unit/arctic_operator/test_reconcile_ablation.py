"""An ablation and its trainings, as a reconciler writes them; the operator may begin anew at any moment."""

import json
import math

import pytest
from small_specs import TRAINING_SPEC

from arctic_api.common import parse_tokens
from arctic_api.verdict import verdict
from arctic_api.world import uid5
from arctic_operator.cache import Key

SPEC = {
    "training": TRAINING_SPEC,
    "grid": [{"field": "optimizer.weightDecay", "values": [0.3, 0.1, 0.0, 0.2]}],
    "objective": {"perplexity": {"general": 1}},
    "halving": {"first": "250k", "factor": 2},
    "parallelism": 2,
}


def train(operator) -> None:
    """Let each training come to where it may go, and show it."""
    for training in operator.server.of("ArcticTraining"):
        tokens = min(1_000_000, parse_tokens(training["spec"]["suspendAt"]))
        loss = 2 + training["spec"]["optimizer"]["weightDecay"]
        operator.set_status(
            Key("ArcticTraining", "team", training["metadata"]["name"]),
            state="Succeeded" if tokens == 1_000_000 else "Suspended",
            tokens=tokens,
            evaluation={"perplexity/general": f"{math.exp(loss):.4f}"},
        )


def report(operator) -> None:
    """Let the Job that writes the report complete, and show it."""
    for job in operator.server.of("Job"):
        complete = {"conditions": [{"type": "Complete", "status": "True"}]}
        operator.cache.put(operator.server.put(job | {"status": complete}))


@pytest.mark.parametrize("restarts", [False, True])
async def test_an_ablation_finds_the_best_though_the_operator_begins_anew_at_each_step(operator, restarts):
    key = operator.add("ArcticAblation", "rates", **SPEC)
    for _ in range(40):
        await operator.reconcile(key)
        if operator.status(key)["state"] not in ("Running", "Reporting"):
            break
        train(operator)
        report(operator)
        if restarts:
            operator.restart()
    status = operator.status(key)
    assert (status["state"], status["best"]) == ("Succeeded", "weightDecay=0.0")
    assert len(operator.server.of("ArcticTraining")) == 4
    [best] = [each for each in status["trials"] if each["variant"] == "weightDecay=0.0"]
    assert [point["tokens"] for point in best["points"]] == [250_000, 500_000, 1_000_000]
    secrets = {each["metadata"]["name"] for each in operator.server.of("Secret")}
    assert secrets - {"arctic-ca"} == {f"rates-{uid5('uid-rates')}-tls"}, "its pod's; its trainings have their own"
    assert operator.server.of("Job") == [], "what it was for is done"
    [config] = operator.server.of("ConfigMap")
    assert config["metadata"]["name"] == status["bestConfigMap"]
    made = json.loads(config["data"]["training.json"])
    assert (made["spec"]["optimizer"]["weightDecay"], verdict(made)) == (0.0, [])


async def test_trainings_that_are_made_are_due_as_their_watch_shows_nothing_new(operator):
    key = operator.add("ArcticAblation", "rates", **SPEC)
    await operator.reconcile(key)
    names = {each["metadata"]["name"] for each in operator.server.of("ArcticTraining")}
    due = [await operator.queue.get() for _ in range(len(operator.queue))]
    assert {each.name for each in due if each.kind == "ArcticTraining"} == names


async def test_no_more_trainings_run_than_may(operator):
    key = operator.add("ArcticAblation", "rates", **SPEC)
    for _ in range(3):
        await operator.reconcile(key)
    assert len(operator.server.of("ArcticTraining")) == 2


async def test_a_training_of_an_ablation_is_no_leftover_of_its_name(operator):
    key = operator.add("ArcticAblation", "rates", **SPEC)
    await operator.reconcile(key)
    name = operator.server.of("ArcticTraining")[0]["metadata"]["name"]
    await operator.reconcile(Key("ArcticTraining", "team", name))
    operator.restart()
    await operator.reconcile(Key("ArcticTraining", "team", name))
    assert {each["metadata"]["name"] for each in operator.server.of("ArcticTraining")} >= {name}
    assert [each["metadata"]["name"] for each in operator.server.of("Job")] != []


async def test_what_an_earlier_ablation_of_the_name_has_left_goes(operator):
    key = operator.add("ArcticAblation", "rates", **SPEC)
    await operator.reconcile(key)
    before = {each["metadata"]["uid"] for each in operator.server.of("ArcticTraining")}
    ablation = operator.server.objects.pop(tuple(key))
    operator.cache.remove(ablation)
    made_anew = {"metadata": {"name": "rates", "namespace": "team", "uid": "uid-anew", "generation": 1}}
    operator.cache.put(
        operator.server.put({"apiVersion": ablation["apiVersion"], "kind": key.kind, "spec": SPEC} | made_anew)
    )
    for _ in range(3):
        await operator.reconcile(key)
    owners = {each["metadata"]["ownerReferences"][0]["uid"] for each in operator.server.of("ArcticTraining")}
    assert owners == {"uid-anew"}
    assert not before & {each["metadata"]["uid"] for each in operator.server.of("ArcticTraining")}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"objective": {"perplexity": {"poems": 1}}}, "no such category"),
        ({"grid": [{"field": "seed.of.all", "values": [1]}]}, "there is nothing below"),
        ({"grid": [{"field": "optimizer.weightDecay", "values": [0.1, -1]}]}, "variant weightDecay=-1: spec.optimizer"),
        ({"seeds": 64, "grid": [{"field": "seed", "values": list(range(64))}]}, "at most 1024 trainings"),
    ],
)
async def test_a_wrong_specification_is_told_and_nothing_is_trained(operator, wrong, words):
    key = operator.add("ArcticAblation", "rates", **SPEC | wrong)
    await operator.reconcile(key)
    assert operator.status(key)["state"] == "InvalidSpec"
    assert words in operator.condition(key, "Failed")["message"]
    assert not operator.server.of("ArcticTraining")
