"""Evaluations that are made beside a training."""

import pytest
from small_specs import TRAINING_SPEC

from arctic_api.common import MAX_OBJECT_NAME
from arctic_api.verdict import verdict
from arctic_operator.cache import Key
from arctic_operator.manifests.common import stage_evaluation_name
from arctic_operator.observe import training_parts
from arctic_operator.observed import Identity, Judged
from arctic_operator.plan.stage_evaluations import evaluations_beside, found_beside

SUITES = {
    "suites": ["perplexity", "humaneval"],
    "data": [{"name": "humaneval", "uri": "file:///suites/HumanEval.jsonl"}],
}
STAGE = TRAINING_SPEC["curriculum"]["stages"][0]
CURRICULUM = {"stages": [STAGE | {"name": "general"}, STAGE | {"name": "code"}]}
OVER = {
    "name": "general",
    "tokens": 1,
    "budget": 1,
    "completionTime": "2026-01-01T00:00:00Z",
    "checkpoint": "file:///var/lib/arctic/store/team/tiny-0a1b2/checkpoints/step-7",
}
UNDER_WAY = {"name": "code", "tokens": 1, "budget": 2}


@pytest.fixture
def trained(build):
    """A training whose first stage is over."""

    def made(evaluation=SUITES, **fields):
        status = fields.pop("status", {"stages": [OVER, UNDER_WAY]})
        return build.training(status, curriculum=CURRICULUM, evaluation=evaluation, **fields)

    return made


def test_a_stage_that_is_over_is_evaluated_beside_the_run(trained):
    training = trained(
        resources={"limits": {"nvidia.com/gpu": 8}},
        template={
            "volumes": [{"claimName": "suites", "mountPath": "/suites"}],
            "deviceClaims": [{"name": "gpus", "templateName": "eight"}],
        },
    )
    (made,) = evaluations_beside(training, ())
    assert verdict(made) == []
    assert made["metadata"]["name"] == "tiny-0a1b2-s1"
    assert made["metadata"]["ownerReferences"][0]["uid"] == training.identity.uid
    spec = made["spec"]
    assert spec["model"] == {"training": "tiny", "stage": "general"}
    assert spec["suites"] == SUITES["data"]
    assert spec["results"] == training.spec.checkpoint.volume.wire()
    assert "resources" not in spec, "one pod evaluates: the world's GPUs are not for it"
    assert spec["template"] == {"volumes": [{"claimName": "suites", "mountPath": "/suites", "readOnly": True}]}


def test_it_is_made_once(trained):
    assert evaluations_beside(trained(), [Judged("tiny-0a1b2-s1")]) == ()


@pytest.mark.parametrize("evaluation", [None, {"suites": ["perplexity"]}])
def test_what_asks_for_none_has_none(trained, evaluation):
    assert evaluations_beside(trained(evaluation), ()) == ()


def test_an_adapter_is_evaluated_from_its_export(trained):
    base = {"from": {"training": "base"}}
    assert len(evaluations_beside(trained(model=base), ())) == 1, "its checkpoint is a model"
    adapter = {"model": base | {"adapter": {"lora": {"rank": 8, "alpha": 16}}}}
    assert evaluations_beside(trained(**adapter), ()) == ()
    exported = {"stages": [OVER, UNDER_WAY], "export": {"uri": "file:///store/export"}}
    (made,) = evaluations_beside(trained(status=exported, **adapter), ())
    assert made["spec"]["model"] == {"training": "tiny"}


def test_the_newest_stage_that_was_judged_is_told(trained):
    first = Judged("tiny-0a1b2-s1", {"humaneval/pass@1": "0.1000", "gsm8k/strict match": "0.2000"})
    second = Judged("tiny-0a1b2-s2", {"humaneval/pass@1": "0.3000"})
    assert found_beside(trained(), [second, first]) == {
        "humaneval/pass@1": "0.3000",
        "gsm8k/strict match": "0.2000",
    }


def test_long_names_leave_room_for_what_tells_them_apart():
    identity = Identity("ArcticTraining", "team", "a" * MAX_OBJECT_NAME, "0a1b2c3d-0000")
    names = {stage_evaluation_name(identity, number) for number in range(1, 17)}
    assert len(names) == 16
    assert max(map(len, names)) == MAX_OBJECT_NAME


def test_an_edit_of_what_is_run_beside_disturbs_no_world():
    alone = TRAINING_SPEC | {"evaluation": {"suites": ["perplexity"], "atStageEnd": True}}
    beside = TRAINING_SPEC | {"evaluation": SUITES | {"atStageEnd": True, "resources": {}}}
    assert training_parts(alone) == training_parts(beside)
    assert training_parts(alone) != training_parts(TRAINING_SPEC)


async def test_a_training_is_evaluated_after_its_end_too_and_tells_what_was_found(operator):
    key = operator.add("ArcticTraining", curriculum=CURRICULUM, evaluation=SUITES)
    await operator.reconcile(key)
    when = OVER["completionTime"]
    succeeded = {"type": "Succeeded", "status": "True", "reason": "Succeeded", "lastTransitionTime": when}
    over = {"state": "Succeeded", "completionTime": when, "conditions": [succeeded], "stages": [OVER, UNDER_WAY]}
    operator.set_status(key, **over)
    await operator.reconcile(key)
    (made,) = operator.server.of("ArcticEvaluation")
    beside = Key("ArcticEvaluation", "team", made["metadata"]["name"])
    due = [await operator.queue.get() for _ in range(len(operator.queue))]
    assert beside in due
    jobs = len(operator.server.of("Job"))
    figure = {"name": "pass@1", "value": "0.2500", "interval": "0.1 to 0.4"}
    operator.set_status(beside, suites=[{"name": "humaneval", "state": "Done", "figures": [figure]}])
    for _ in range(2):
        await operator.reconcile(key)
    assert operator.status(key)["evaluation"] == {"humaneval/pass@1": "0.2500"}
    assert len(operator.server.of("ArcticEvaluation")) == 1
    assert len(operator.server.of("Job")) == jobs


async def test_who_waits_for_an_export_is_due_once_it_is_written(operator, build):
    key = operator.add("ArcticTraining")
    waiting = operator.add("ArcticInference", "chat", model={"training": "tiny"})
    await operator.reconcile(key)
    report = build.report(export_uri="file:///var/lib/arctic/store/export")
    for pod in operator.pods("Succeeded", terminated={"exitCode": 0, "message": report}):
        operator.cache.put(pod)
    (job,) = operator.server.of("Job")
    complete = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
    operator.cache.put(operator.server.put(job | complete))
    while len(operator.queue):
        operator.queue.done(await operator.queue.get())
    await operator.reconcile(key)
    assert operator.status(key)["export"]
    assert waiting in [await operator.queue.get() for _ in range(len(operator.queue))]
