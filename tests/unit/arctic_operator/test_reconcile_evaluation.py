"""An evaluation as a reconciler carries it out, with what it names beside it."""

import pytest

from arctic_api.world import EvaluationReport, Label, SuiteReport
from arctic_operator.cache import Key

SPEC = {
    "model": {"training": "tiny"},
    "suites": [{"name": "gsm8k", "uri": "file:///suites/test.jsonl"}],
    "results": {"claimName": "store"},
}
EXPORT = "file:///var/lib/arctic/store/team/tiny-0a1b2/export"


def end(operator, report: EvaluationReport, code: int) -> None:
    """Let the Job's pod end with a last word, and show it."""
    message = report.model_dump_json(by_alias=True)
    show_pod(operator, {"terminated": {"exitCode": code, "message": message, "finishedAt": "2026-01-01T00:01:00Z"}})


def show_pod(operator, state) -> None:
    """Show the Job's pod on node n0, its container in this state."""
    (job,) = operator.server.of("Job")
    metadata = job["metadata"]
    owner = {"kind": "Job", "name": metadata["name"], "uid": metadata["uid"], "controller": True}
    pod = {
        "kind": "Pod",
        "metadata": {
            "name": f"{metadata['name']}-0",
            "namespace": "team",
            "labels": metadata["labels"],
            "ownerReferences": [owner],
        },
        "spec": {"nodeName": "n0", "restartPolicy": "Never"},
        "status": {"phase": "Running", "containerStatuses": [{"name": "worker", "state": state}]},
    }
    operator.cache.put(operator.server.put(pod))


@pytest.mark.parametrize("restarts", [False, True])
async def test_an_export_is_evaluated_once_it_is_there(operator, restarts):
    training = operator.add("ArcticTraining")
    key = operator.add("ArcticEvaluation", "judged", **SPEC)
    await operator.reconcile(key)
    assert operator.status(key)["state"] == "WaitingForTraining"
    assert operator.server.of("Job") == []
    operator.set_status(training, export={"uri": EXPORT})
    assert key in set(operator.cache.users(training))
    await operator.reconcile(key)
    (job,) = operator.server.of("Job")
    assert job["metadata"]["ownerReferences"][0]["uid"] == "uid-judged"
    assert job["metadata"]["labels"][Label.KIND] == "ArcticEvaluation"
    if restarts:
        operator.restart()
    await operator.reconcile(key)
    assert len(operator.server.of("Job")) == 1
    suite = SuiteReport(name="gsm8k", state="Done", answered=3, judged=3, planned=3)
    end(operator, EvaluationReport(outcome="succeeded", suites=[suite]), 0)
    await operator.reconcile(key)
    status = operator.status(key)
    assert (status["state"], status["suites"][0]["judged"]) == ("Succeeded", 3)
    if restarts:
        operator.restart()
    await operator.reconcile(key)
    assert len(operator.server.of("Job")) == 1
    assert operator.server.of("Secret") != [], "the pod proves by a certificate whose it is"


async def test_a_pod_on_a_lost_node_is_followed_by_another_ones(operator_with, build):
    operator = operator_with(build.settings.model_copy(update={"read_nodes": True}))
    key = operator.add("ArcticEvaluation", "judged", **SPEC | {"model": {"uri": "file:///weights"}})
    await operator.reconcile(key)
    show_pod(operator, {"running": {}})
    for node in operator.nodes(True, True):
        operator.cache.put(node)
    await operator.reconcile(key)
    (first,) = operator.server.of("Job")
    for node in operator.nodes(False, True):
        operator.cache.put(node)
    await operator.reconcile(key)
    assert operator.server.of("Job") == []
    assert operator.condition(key, "Degraded")["reason"] == "NodeLost"
    operator.restart()
    await operator.reconcile(key)
    (second,) = operator.server.of("Job")
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert operator.status(key)["state"] == "Starting"


async def test_bad_input_is_told(operator):
    key = operator.add("ArcticEvaluation", "judged", **SPEC | {"model": {"uri": "file:///weights"}})
    await operator.reconcile(key)
    end(operator, EvaluationReport(outcome="refused", reason="BadInput", message="no config.json"), 64)
    await operator.reconcile(key)
    assert operator.status(key)["state"] == "Failed"
    assert operator.condition(key, "Failed")["message"] == "no config.json"


async def test_a_wrong_specification_is_told_and_nothing_is_run(operator):
    key = operator.add("ArcticEvaluation", "judged", **SPEC | {"samples": 2})
    await operator.reconcile(key)
    assert operator.status(key)["state"] == "InvalidSpec"
    assert "temperature above 0" in operator.condition(key, "Failed")["message"]
    assert operator.server.of("Job") == []


async def test_a_service_that_is_not_there_is_named(operator):
    key = operator.add("ArcticEvaluation", "judged", **SPEC | {"model": {"service": "gone"}})
    await operator.reconcile(key)
    assert operator.status(key)["state"] == "WaitingForService"
    assert operator.condition(key, "Degraded")["reason"] == "NoSuchService"
    assert operator.cache.custom(Key("ArcticEvaluation", "team", "judged")) is not None
