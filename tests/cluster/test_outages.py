"""Parts of the real local cluster go away and come back: the operator, its leader, nodes. The lifecycle alone is in
question, so a cheap stand-in runs in the pods."""

import json
import time
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from kept_asking import kill_the_operator, leader, until_another_leads
from objects import condition, eventually, is_ready, restarts, until_all_ready
from stand_in import StandIns, preferring

from arctic_cluster import Cluster
from arctic_cluster.addresses import Node
from arctic_cluster.errors import ClusterError
from arctic_cluster.manifests import SYSTEM_NAMESPACE

OPERATOR = ("-n", SYSTEM_NAMESPACE, "deployment/arctic-operator")


@pytest.fixture
def objects(operator: Cluster, stand_in: None, namespace: str) -> StandIns:
    return StandIns(operator, namespace)


def operators(cluster: Cluster) -> list[dict[str, Any]]:
    """Return the operator's pods."""
    found: list[dict[str, Any]] = json.loads(
        cluster.kubectl("get", "pods", *OPERATOR[:2], "-l", "app.kubernetes.io/name=arctic-operator", "-o", "json")
    )["items"]
    return found


def unwell(cluster: Cluster) -> int:
    """Return how often operators have answered a liveness probe with a fault of theirs."""
    chosen = "--field-selector=reason=Unhealthy,involvedObject.kind=Pod"
    events = json.loads(cluster.kubectl("get", "events", *OPERATOR[:2], chosen, "-o=json"))["items"]
    told = [each for each in events if each["message"].startswith("Liveness") and "statuscode" in each["message"]]
    return sum(each.get("count", 1) for each in told if "operator" in each["involvedObject"]["name"])


def away_from_the_operator(objects: StandIns) -> tuple[Node, dict[str, Any]]:
    """Return a node without the operator, and a template that prefers it."""
    (operator,) = operators(objects.cluster)
    node = next(n for n in objects.cluster.nodes if n.name != operator["spec"]["nodeName"])
    return node, preferring(node)


def evaluating(objects: StandIns, name: str, other_than: str = "") -> dict[str, Any]:
    """Return the pod of an evaluation that is ready on another node than one, once it is there."""

    def ready() -> dict[str, Any] | None:
        pods = [pod for pod in objects.pods(name, "ArcticEvaluation") if pod["spec"].get("nodeName") != other_than]
        return next((pod for pod in pods if is_ready(pod)), None)

    return objects.eventually(f"a pod of {name} is ready", ready)


def test_the_operator_may_go_and_come_back_and_children_go_without_it(objects: StandIns) -> None:
    objects.train("tiny", {"SECONDS": "40"})
    objects.train("other")
    before = objects.running("tiny", 1)
    objects.running("other", 1)
    objects.cluster.kubectl("scale", *OPERATOR, "--replicas=0")
    try:
        objects.cluster.kubectl(
            *("wait", "-n", SYSTEM_NAMESPACE, "--for=delete", "pod", "-l", "app.kubernetes.io/name=arctic-operator"),
            "--timeout=240s",
        )
        objects.kubectl("delete", "arctictraining", "other")
        objects.eventually("the pods are gone", lambda: objects.pods("other") == [])
        objects.eventually(
            "the end of the pods", lambda: {p["status"]["phase"] for p in objects.pods("tiny")} == {"Succeeded"}
        )
        assert [p["metadata"]["uid"] for p in objects.pods("tiny")] == [p["metadata"]["uid"] for p in before]
    finally:
        objects.cluster.kubectl("scale", *OPERATOR, "--replicas=1")
    assert objects.state("arctictraining", "tiny", "Succeeded")["attempt"] == 1


def test_what_runs_on_a_node_that_is_cut_off_goes_on_elsewhere_without_counting(objects: StandIns) -> None:
    node, there = away_from_the_operator(objects)
    objects.train("tiny", template=there, parallelism={"nodes": 1})
    objects.evaluate("judged", template=there, retries=0)
    (first,) = objects.running("tiny", 1, pods=1)
    assert {first["spec"]["nodeName"], evaluating(objects, "judged")["spec"]["nodeName"]} == {node.name}
    objects.cluster.cut(node.name)
    try:
        (second,) = objects.running("tiny", 2, pods=1)
        assert second["spec"]["nodeName"] != node.name
        status = objects.status("arctictraining", "tiny")
        assert [(a["reason"], a["counted"]) for a in status["attempts"]] == [("NodeLost", False)]
        evaluating(objects, "judged", other_than=node.name)
        assert condition(objects.state("aev", "judged", "Running"), "Degraded")["status"] == "False"
    finally:
        objects.cluster.mend(node.name)
        until_all_ready(objects.cluster)
    objects.eventually("the lost pod is gone", lambda: len(objects.pods("judged", "ArcticEvaluation")) == 1)


def test_an_operator_on_a_node_that_is_cut_off_is_made_anew_elsewhere(objects: StandIns) -> None:
    (lost,) = operators(objects.cluster)
    objects.cluster.cut(lost["spec"]["nodeName"])
    try:

        def led_elsewhere() -> bool:
            others = [pod for pod in operators(objects.cluster) if pod["metadata"]["uid"] != lost["metadata"]["uid"]]
            return leader(objects.cluster) in [pod["metadata"]["name"] for pod in others]

        objects.eventually("another operator leads", led_elsewhere)
    finally:
        objects.cluster.mend(lost["spec"]["nodeName"])
        until_all_ready(objects.cluster)
    objects.eventually("the end of the lost one", lambda: len(operators(objects.cluster)) == 1)


def test_an_api_server_that_was_away_restarts_nothing_and_all_catches_up(
    objects: StandIns, request: pytest.FixtureRequest
) -> None:
    objects.train("done", {"SECONDS": "20"}, parallelism={"nodes": 1})
    objects.train("tiny")
    objects.serve("tiny")
    objects.running("done", 1, pods=1)
    objects.running("tiny", 1)
    objects.state("arcticinference", "tiny", "Ready")
    before, operating = objects.restarts("tiny"), restarts(operators(objects.cluster))
    faults = unwell(objects.cluster)
    objects.cluster.stop("kube-apiserver")
    try:
        time.sleep(request.config.getoption("away"))
    finally:
        objects.cluster.start("kube-apiserver")
    eventually("the API server answers", partial(answers, objects.cluster))
    back = time.monotonic()
    objects.train("later", parallelism={"nodes": 1})
    objects.eventually("a new one is seen to", lambda: objects.status("arctictraining", "later"))
    print(f"\nwhat is made then is seen to {time.monotonic() - back:.1f} s after the API server answers,")
    assert objects.state("arctictraining", "done", "Succeeded")["attempt"] == 1
    print(f"what had ended meanwhile is told after {time.monotonic() - back:.1f} s,")
    objects.state("arctictraining", "tiny", "Running")
    objects.state("arcticinference", "tiny", "Ready")
    objects.running("later", 1, pods=1)
    print(f"all runs, and what was made then, after {time.monotonic() - back:.1f} s")
    assert objects.status("arctictraining", "tiny").get("attempts") is None
    assert objects.restarts("tiny") == before
    # Its pod may be a new one: kubelets come back up to a minute after the API server, and it waits for no lost node.
    for pod, counts in restarts(operators(objects.cluster)).items():
        begun_with = operating.get(pod, [0] * len(counts))  # one that is made just now has no container yet
        assert counts == begun_with, objects.cluster.kubectl("describe", "pods", *OPERATOR[:2])
    assert unwell(objects.cluster) <= faults  # events are kept for an hour


def answers(cluster: Cluster) -> bool:
    """Whether the API server answers."""
    with suppress(ClusterError):
        return cluster.kubectl("get", "--raw", "/readyz").strip() == "ok"
    return False


def test_an_operator_that_lost_the_lease_leads_again(objects: StandIns) -> None:
    objects.train("tiny")
    objects.running("tiny", 1)
    stolen = '{"spec": {"holderIdentity": "another"}}'
    objects.cluster.kubectl("patch", "lease", "-n", SYSTEM_NAMESPACE, "arctic-operator", "--type=merge", "-p", stolen)
    objects.kubectl("delete", "pod", objects.pods("tiny")[0]["metadata"]["name"], "--wait=false")
    objects.running("tiny", 2)
    objects.eventually("the operator leads", lambda: leader(objects.cluster) != "another")


def test_another_operator_leads_when_the_leader_is_gone(objects: StandIns) -> None:
    objects.cluster.kubectl("scale", *OPERATOR, "--replicas=2")
    try:
        objects.cluster.kubectl("rollout", "status", *OPERATOR)
        killed, gone = kill_the_operator(objects.cluster), time.monotonic()
        until_another_leads(objects.cluster, killed)
        print(f"\nanother operator leads {time.monotonic() - gone:.1f} s after the leader was killed")
        objects.train("tiny")
        objects.running("tiny", 1)
        assert leader(objects.cluster) not in ("", killed)
    finally:
        objects.cluster.kubectl("scale", *OPERATOR, "--replicas=1")
