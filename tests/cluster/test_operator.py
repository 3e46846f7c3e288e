"""Lives of custom resources on the real local cluster: operator, API server, Job controller, scheduler and kubelets are
real, and so are the pods; a cheap stand-in runs in them where the lifecycle alone is in question."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from objects import condition, is_ready, processes
from stand_in import StandIns
from webhook import PROXY, second_containers

from arctic_api.world import Label
from arctic_cluster import Cluster
from arctic_cluster.manifests import SYSTEM_NAMESPACE

OPERATOR = ("-n", SYSTEM_NAMESPACE, "deployment/arctic-operator")


@pytest.fixture
def objects(operator: Cluster, stand_in: None, namespace: str) -> StandIns:
    return StandIns(operator, namespace)


def test_a_training_runs_a_pod_a_node_succeeds_by_its_report_and_takes_its_children_along(objects: StandIns) -> None:
    objects.train("tiny", {"SECONDS": "5"})
    status = objects.state("arctictraining", "tiny", "Succeeded")
    assert len({pod["spec"]["nodeName"] for pod in objects.pods("tiny")}) == 2
    assert (status["step"], status["loss"], status["export"]) == (7, "1.2500", {"uri": "file:///export"})
    assert condition(status, "Succeeded")["status"] == "True"
    objects.kubectl("delete", "arctictraining", "tiny")
    kinds = "jobs,pods,services,networkpolicies,secrets"
    objects.eventually("all children are gone", lambda: not objects.labelled(kinds, Label.MANAGED))


def test_a_deleted_pod_is_followed_by_the_next_attempt_and_does_not_count(objects: StandIns) -> None:
    objects.train("tiny")
    first = objects.running("tiny", 1)
    objects.kubectl("delete", "pod", first[1]["metadata"]["name"], "--wait=false")
    objects.running("tiny", 2)
    status = objects.status("arctictraining", "tiny")
    assert [(a["number"], a["reason"], a["counted"]) for a in status["attempts"]] == [(1, "PodDeleted", False)]
    assert status["restarts"] == 0


@pytest.mark.parametrize("code", ["75", "0"])
def test_draining_both_pods_never_makes_it_succeeded(objects: StandIns, code: str) -> None:
    objects.train("tiny", {"EXIT_WHEN_TOLD": code})
    pods = [pod["metadata"]["name"] for pod in objects.running("tiny", 1)]
    objects.kubectl("delete", "pod", *pods, "--wait=false")
    objects.running("tiny", 2)
    status = objects.status("arctictraining", "tiny")
    assert condition(status, "Succeeded")["status"] == "False"
    assert status["restarts"] == 0


def test_failures_count_up_to_the_limit_and_bad_input_is_never_tried_again(objects: StandIns) -> None:
    objects.train("crash", {"SECONDS": "1", "EXIT_CODE": "3"})
    objects.train("refused", {"SECONDS": "1", "EXIT_CODE": "64"})
    status = objects.state("arctictraining", "crash", "Failed")
    assert condition(status, "Failed")["reason"] == "RestartLimitExceeded"
    assert (status["attempt"], status["restarts"]) == (2, 2)
    status = objects.state("arctictraining", "refused", "Failed")
    assert condition(status, "Failed")["reason"] == "UnknownColumn"
    assert condition(status, "Failed")["message"] == "books.jsonl has no column 'text'"
    assert status["attempt"] == 1


def test_an_edit_that_was_refused_is_mended_by_the_next(objects: StandIns) -> None:
    objects.train("tiny", {"SECONDS": "1", "EXIT_CODE": "64", "REASON": "CheckpointMismatch"})
    status = objects.state("arctictraining", "tiny", "Failed")
    assert condition(status, "Failed")["reason"] == "CheckpointMismatch"
    assert "completionTime" not in status
    objects.train("tiny", {"SECONDS": "1"})
    objects.eventually("the next attempt", lambda: objects.status("arctictraining", "tiny").get("attempt") == 2)
    status = objects.state("arctictraining", "tiny", "Succeeded")
    assert (status["attempt"], status["restarts"]) == (2, 0)


def test_what_keeps_pods_from_running_is_told_in_the_status(objects: StandIns) -> None:
    def told(name: str, kind: str) -> str:
        return str(condition(objects.status("arctictraining", name), kind).get("message"))

    objects.train("image", image="registry.invalid/none:1")
    objects.train("room", resources={"requests": {"cpu": "1000"}})
    status = objects.state("arctictraining", "image", "ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff")
    assert "registry.invalid/none:1" in condition(status, "Degraded")["message"]
    objects.eventually("the reason is told", lambda: "Insufficient cpu" in told("room", "PodsScheduled"))
    assert objects.status("arctictraining", "room")["state"] == "Unschedulable"


def test_why_no_pods_are_made_is_told_and_over_when_they_are(objects: StandIns) -> None:
    objects.kubectl("create", "quota", "none", "--hard=pods=0")
    objects.train("tiny")
    objects.serve("tiny")
    for kind in ("arctictraining", "arcticinference"):
        status = objects.state(kind, "tiny", "PodsNotCreated")
        assert "exceeded quota: none" in condition(status, "Degraded")["message"]
    objects.kubectl("delete", "quota", "none")
    objects.state("arctictraining", "tiny", "Running")
    assert condition(objects.status("arctictraining", "tiny"), "Degraded")["status"] == "False"

    def told() -> bool:
        events = json.loads(objects.kubectl("get", "events", "-o", "json"))["items"]
        made = {event["involvedObject"]["kind"] for event in events if event["reason"] == "SuccessfulCreate"}
        return made >= {"Job", "StatefulSet"}

    objects.eventually("the controllers tell of the pods that they make", told)


def test_suspend_stops_the_world_and_resume_makes_the_next(objects: StandIns) -> None:
    objects.train("tiny")
    objects.running("tiny", 1)
    objects.kubectl("patch", "arctictraining", "tiny", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    objects.state("arctictraining", "tiny", "Suspended")
    objects.eventually("the pods are gone", lambda: objects.pods("tiny") == [])
    objects.kubectl("patch", "arctictraining", "tiny", "--type=merge", "-p", '{"spec": {"suspend": false}}')
    objects.running("tiny", 2)
    assert objects.status("arctictraining", "tiny")["restarts"] == 0


def test_an_object_made_again_under_the_same_name_starts_clean(objects: StandIns) -> None:
    objects.train("tiny")
    old = objects.running("tiny", 1)
    objects.kubectl("delete", "arctictraining", "tiny", "--wait=false", "--cascade=background")
    objects.train("tiny")
    uid = objects.get("arctictraining", "tiny")["metadata"]["uid"]

    def anew() -> bool:
        pods = [pod for pod in objects.pods("tiny") if pod["metadata"]["labels"][Label.UID] == uid]
        return len(pods) == 2 and all(map(is_ready, pods))

    objects.eventually("the new object's pods run", anew)
    status = objects.status("arctictraining", "tiny")
    assert status["attempt"] == 1
    assert status.get("attempts") is None
    assert not {pod["metadata"]["name"] for pod in old} & {
        p["metadata"]["name"] for p in objects.pods("tiny") if is_ready(p)
    }


def test_the_operator_may_go_and_come_back_and_children_go_without_it(objects: StandIns) -> None:
    objects.train("tiny", {"SECONDS": "25"})
    objects.train("other")
    before = objects.running("tiny", 1)
    objects.running("other", 1)
    objects.cluster.kubectl("scale", *OPERATOR, "--replicas=0")
    try:
        objects.cluster.kubectl(
            "wait", "-n", SYSTEM_NAMESPACE, "--for=delete", "pod", "-l", "app.kubernetes.io/name=arctic-operator"
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


def test_a_world_on_a_node_that_is_cut_off_goes_on_elsewhere_without_counting(objects: StandIns) -> None:
    (operator,) = json.loads(objects.cluster.kubectl("get", "pods", *OPERATOR[:2], "-o", "json"))["items"]
    node = next(n for n in objects.cluster.nodes if n.name != operator["spec"]["nodeName"])
    there = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node.name]}]}
    preferred = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": there}]}
    objects.train("tiny", affinity={"nodeAffinity": preferred}, parallelism={"nodes": 1})
    (first,) = objects.running("tiny", 1, pods=1)
    assert first["spec"]["nodeName"] == node.name
    objects.cluster.cut(node.name)
    try:
        (second,) = objects.running("tiny", 2, pods=1, limit=240)
        assert second["spec"]["nodeName"] != node.name
        status = objects.status("arctictraining", "tiny")
        assert [(a["reason"], a["counted"]) for a in status["attempts"]] == [("NodeLost", False)]
    finally:
        objects.cluster.mend(node.name)
        objects.cluster.kubectl("wait", "--for=condition=Ready", f"node/{node.name}", "--timeout=120s")


def test_a_second_container_that_never_ends_keeps_nothing_from_its_end(objects: StandIns, tmp_path: Path) -> None:
    with second_containers(objects.cluster, objects.namespace, tmp_path):
        objects.train("done", {"SECONDS": "5"})
        objects.train("killed")
        objects.serve("killed")
        for pod in objects.running("killed", 1):
            assert [container["name"] for container in pod["spec"]["containers"]] == ["worker", PROXY]
        kill_worker(objects.running("killed", 1)[1])
        objects.state("arctictraining", "done", "Succeeded")
        objects.eventually("what ran beside its workers is gone", lambda: objects.pods("done") == [])
        objects.running("killed", 2)
        (ending,) = objects.status("arctictraining", "killed")["attempts"]
        assert (ending["reason"], ending["counted"]) == ("WorkerFailed", True)
        objects.state("arcticinference", "killed", "Ready")
        kill_worker(objects.pods("killed", "ArcticInference")[1])
        objects.eventually("it is noticed", lambda: objects.status("arcticinference", "killed")["readyReplicas"] == 0)
        objects.state("arcticinference", "killed", "Ready")


def kill_worker(pod: dict[str, Any]) -> None:
    """End what stands for the worker in a pod, by force."""
    (worker,) = (each for each in processes(pod) if b"arctic_workers" in (each / "cmdline").read_bytes())
    os.kill(int(worker.name), signal.SIGKILL)


def holder(cluster: Cluster) -> str:
    """Return who leads by the Lease."""
    return cluster.kubectl(
        "get", "lease", "-n", SYSTEM_NAMESPACE, "arctic-operator", "-o", "jsonpath={.spec.holderIdentity}"
    )


def test_an_operator_that_lost_the_lease_leads_again(objects: StandIns) -> None:
    objects.train("tiny")
    objects.running("tiny", 1)
    stolen = '{"spec": {"holderIdentity": "another"}}'
    objects.cluster.kubectl("patch", "lease", "-n", SYSTEM_NAMESPACE, "arctic-operator", "--type=merge", "-p", stolen)
    objects.kubectl("delete", "pod", objects.pods("tiny")[0]["metadata"]["name"], "--wait=false")
    objects.running("tiny", 2)
    objects.eventually("the operator leads", lambda: holder(objects.cluster) != "another")


def test_another_operator_leads_when_the_leader_is_gone(objects: StandIns) -> None:
    objects.cluster.kubectl("scale", *OPERATOR, "--replicas=2")
    try:
        objects.cluster.kubectl("rollout", "status", *OPERATOR)
        leader = holder(objects.cluster)
        objects.cluster.kubectl("delete", "pod", "-n", SYSTEM_NAMESPACE, leader, "--grace-period=0", "--force")
        objects.train("tiny")
        objects.running("tiny", 1)
        assert holder(objects.cluster) not in ("", leader)
    finally:
        objects.cluster.kubectl("scale", *OPERATOR, "--replicas=1")


def test_a_service_is_ready_as_a_whole_heals_and_leaves_its_address_when_suspended(objects: StandIns) -> None:
    objects.serve("tiny")
    status = objects.state("arcticinference", "tiny", "Ready")
    assert (status["readyReplicas"], status["url"]) == (1, f"http://tiny.{objects.namespace}.svc:8000")
    pods = objects.pods("tiny", "ArcticInference")
    assert len({pod["spec"]["nodeName"] for pod in pods}) == 2
    leaders = objects.labelled("pods", status["selector"])
    assert [leader["metadata"]["name"] for leader in leaders] == [pods[0]["metadata"]["name"]]

    objects.kubectl("delete", "pod", pods[1]["metadata"]["name"])
    objects.eventually("it is not ready", lambda: objects.status("arcticinference", "tiny")["readyReplicas"] == 0)
    objects.state("arcticinference", "tiny", "Ready")

    objects.kubectl("patch", "arcticinference", "tiny", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    objects.state("arcticinference", "tiny", "Suspended", limit=180)
    assert objects.labelled("statefulsets", f"{Label.NAME}=tiny") == []
    assert objects.get("service", "tiny")["metadata"]["labels"][Label.NAME] == "tiny"


def test_what_a_services_pods_mount_is_put_back_when_they_start(objects: StandIns) -> None:
    objects.serve("tiny")
    objects.state("arcticinference", "tiny", "Ready")
    selector = f"{Label.NAME}=tiny"
    objects.kubectl("delete", "secrets,configmaps", "-l", selector)
    objects.kubectl("delete", "pods", "-l", selector, "--wait=false")
    objects.eventually("they are back", lambda: len(objects.labelled("secrets,configmaps", selector)) == 2)
    objects.state("arcticinference", "tiny", "Ready", limit=400)


def test_an_address_that_is_someone_elses_is_left_alone_and_told(objects: StandIns) -> None:
    objects.kubectl("create", "service", "clusterip", "tiny", "--tcp=80")
    objects.serve("tiny")

    def told() -> dict[str, Any] | None:
        degraded = condition(objects.status("arcticinference", "tiny"), "Degraded")
        return degraded if degraded.get("reason") == "FailedCreate" else None

    message = objects.eventually("it is told", told)["message"]
    assert "Service tiny exists and belongs to something else" in message
    assert objects.get("service", "tiny")["spec"]["ports"][0]["port"] == 80
