"""What a reconciliation tells a real collector, and that workers find their place in it by what they are told."""

import time
from collections.abc import Iterator

import pytest
from collector import Collector, collecting

from arctic_api import tracing
from arctic_api.tracing import Place, Span
from arctic_api.world import WORLD_VARIABLE, EvaluationWorld, InferenceGroup, TrainingWorld
from arctic_operator.cluster import ApiError
from arctic_workers.control.traces import made_by_operator

TRACE = "0a1b2c3d000040008000000000000001"
JUDGED = {
    "model": {"uri": "file:///weights"},
    "suites": [{"name": "gsm8k", "uri": "file:///suites/test.jsonl"}],
    "results": {"claimName": "store"},
}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with collecting() as made:
        tracing.begin("arctic-operator", made.url, {})
        yield made
        tracing.end()


def world_of(job_or_set, kind):
    (container,) = job_or_set["spec"]["template"]["spec"]["containers"]
    told = {each["name"]: each.get("value") for each in container["env"]}
    return kind.model_validate_json(told[WORLD_VARIABLE])


@pytest.mark.parametrize(
    ("kind", "spec", "child", "world"),
    [
        ("ArcticTraining", {}, "Job", TrainingWorld),
        ("ArcticInference", {}, "StatefulSet", InferenceGroup),
        ("ArcticEvaluation", JUDGED, "Job", EvaluationWorld),
    ],
)
async def test_a_worlds_making_is_told_in_its_objects_trace_where_its_workers_look_for_it(
    operator, collector, kind, spec, child, world
):
    key = operator.add(kind, **spec)
    await operator.reconcile(key)
    reconciles = [span for span in collector.wait_for("make world") if span.name == "reconcile"]
    (made,) = operator.server.of(child)
    span = collector.one("make world")
    place = made_by_operator(world_of(made, world))
    assert (span.trace, span.id) == (TRACE, f"{place.span:016x}")
    assert span.attributes["arctic.child"] == f"{child}/{made['metadata']['name']}"
    (reconcile,) = (each for each in reconciles if each.id == span.parent)
    assert (reconcile.trace, reconcile.parent, reconcile.error) == (TRACE, "", "")
    about = {name: reconcile.attributes[name] for name in ("k8s.namespace.name", "arctic.kind", "arctic.name")}
    assert about == {"k8s.namespace.name": "team", "arctic.kind": kind, "arctic.name": "tiny"}
    assert reconcile.attributes["arctic.children.create"] >= 1
    assert reconcile.attributes["arctic.children.apply"] >= 1
    assert reconcile.attributes["arctic.state"] == operator.status(key)["state"]
    assert reconcile.begun <= span.begun <= span.ended <= reconcile.ended


async def test_a_visit_in_which_nothing_is_done_is_not_told_of(operator, collector):
    key = operator.add("ArcticTraining")
    await operator.reconcile(key)
    before = len([span for span in collector.wait_for("make world") if span.name == "reconcile"])
    for _ in range(3):
        await operator.reconcile(key)
    tracing.record(Span("later", 0, 0))
    after = len([span for span in collector.wait_for("later") if span.name == "reconcile"])
    assert after == before


async def test_a_visit_that_fails_says_why(operator, collector, monkeypatch):
    async def refuse(manifest):
        raise ApiError(403, "Forbidden", "exceeded quota: pods")

    monkeypatch.setattr(operator.server, "create", refuse)
    await operator.reconcile(operator.add("ArcticTraining"))
    assert "exceeded quota: pods" in collector.one("reconcile").error


def test_local_processes_which_nobody_made_are_under_nothing(build):
    training = build.training()
    world = TrainingWorld(
        namespace="n",
        name="t",
        uid=build.uid,
        tls_folder=None,
        first_host="h",
        spec=training.spec,
        attempt=1,
        epoch=int(time.time()),
        run_folder="/r",
    )
    assert made_by_operator(world) == Place.of(build.uid) == Place(int(TRACE, 16), 0)
