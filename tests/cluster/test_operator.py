"""Lives of custom resources on the real local cluster: operator, API server, Job controller, scheduler and kubelets are
real, and so are the pods; a cheap stand-in runs in them where the lifecycle alone is in question."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from objects import PATIENCE, condition, is_ready, processes
from stand_in import StandIns
from webhook import PROXY, second_containers

from arctic_api.world import Label
from arctic_cluster import Cluster

GPU = "example.com/gpu"


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


def test_a_container_out_of_memory_is_named_with_its_limit_and_what_to_change(objects: StandIns) -> None:
    environment = {"SECONDS": "5", "EATS": "512"}
    memory = {"limits": {"memory": "128Mi"}}
    objects.train("tiny", environment, restart={"limit": 0}, parallelism={"nodes": 1}, resources=memory)
    failed = condition(objects.state("arctictraining", "tiny", "Failed"), "Failed")
    [ending] = objects.status("arctictraining", "tiny")["attempts"]
    assert ending["reason"] == "OOMKilled"
    for told in (ending["message"], failed["message"]):
        assert "128Mi" in told
        assert "tiny-" in told
        assert "raise resources.limits.memory" in told

    def events() -> list[str]:
        found = json.loads(objects.kubectl("get", "events", "-o", "json"))["items"]
        return [event["message"] for event in found if event["involvedObject"]["kind"] == "ArcticTraining"]

    # Events are told beside the status.
    objects.eventually(
        "an event tells it", lambda: any("raise resources.limits.memory" in message for message in events())
    )
    assert not any("{" in message for message in events())


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
    request = {"name": "gpus", "exactly": {"deviceClassName": "gpu.example.com", "count": 8}}
    claim = {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate", "metadata": {"name": "eight-gpus"}}
    objects.apply(claim | {"spec": {"spec": {"devices": {"requests": [request]}}}})
    objects.train("devices", template={"deviceClaims": [{"name": "gpus", "templateName": "eight-gpus"}]})
    status = objects.state("arctictraining", "image", "ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff")
    assert "registry.invalid/none:1" in condition(status, "Degraded")["message"]
    objects.eventually("the reason is told", lambda: "Insufficient cpu" in told("room", "PodsScheduled"))
    objects.eventually(
        "devices that are not there are told", lambda: "gpu.example.com" in told("devices", "PodsScheduled")
    )
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

    # The longer a StatefulSet's controller has tried in vain, the longer it waits for the next try.
    objects.eventually("the controllers tell of the pods that they make", told, 2 * PATIENCE)


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


def test_what_others_write_into_a_status_goes_and_what_two_managers_say_of_a_manifest_counts(objects: StandIns) -> None:
    objects.train("tiny")
    before = objects.running("tiny", 1)
    objects.state("arctictraining", "tiny", "Running")
    wrong = {"status": {"state": "Nonsense", "observedGeneration": 99, "conditions": []}}
    objects.kubectl(
        *("patch", "arctictraining", "tiny", "--subresource=status", "--type=merge", "-p", json.dumps(wrong)),
        "--field-manager=somebody",
    )
    status = objects.state("arctictraining", "tiny", "Running")
    objects.eventually(
        "all conditions are back", lambda: len(objects.status("arctictraining", "tiny")["conditions"]) == 7
    )
    other = {"apiVersion": "arctic.dev/v1alpha1", "kind": "ArcticTraining", "metadata": {"name": "tiny"}}
    limit = json.dumps(other | {"spec": {"restart": {"limit": 4}}})
    objects.kubectl("apply", "--server-side", "--force-conflicts", "--field-manager=another", "-f", "-", stdin=limit)
    generation = objects.get("arctictraining", "tiny")["metadata"]["generation"]
    objects.eventually(
        "the edit is taken", lambda: objects.status("arctictraining", "tiny")["observedGeneration"] == generation
    )
    assert objects.get("arctictraining", "tiny")["spec"]["model"], "what the first manager said counts still"
    assert status["attempt"] == 1
    assert [pod["metadata"]["uid"] for pod in objects.pods("tiny")] == [pod["metadata"]["uid"] for pod in before]


def test_what_is_replaced_by_force_starts_clean_and_what_is_pruned_takes_its_world_along(objects: StandIns) -> None:
    objects.train("tiny")
    objects.running("tiny", 1)
    old = objects.get("arctictraining", "tiny")
    kept = {name: old["metadata"][name] for name in ("name", "namespace")} | {"labels": {"applied": "together"}}
    manifest = {"apiVersion": old["apiVersion"], "kind": old["kind"], "metadata": kept, "spec": old["spec"]}
    objects.kubectl("replace", "--force", "-f", "-", stdin=json.dumps(manifest))
    uid = objects.get("arctictraining", "tiny")["metadata"]["uid"]
    assert uid != old["metadata"]["uid"]
    objects.eventually(
        "only the new object's world is there, and runs",
        lambda: (
            [pod["metadata"]["labels"][Label.UID] for pod in objects.pods("tiny") if is_ready(pod)] == [uid] * 2
            and len(objects.pods("tiny")) == 2
        ),
        2 * PATIENCE,
    )
    assert objects.status("arctictraining", "tiny")["attempt"] == 1
    # Pruned is what was applied with its label, and is not among what is applied now.
    objects.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other", "labels": {"applied": "together"}}}
    allowed = "--prune-allowlist=arctic.dev/v1alpha1/ArcticTraining"
    objects.kubectl("apply", "--prune", "-l", "applied=together", allowed, "-f", "-", stdin=json.dumps(other))
    kinds = "arctictrainings,jobs,pods,services,networkpolicies,secrets"
    objects.eventually("the training and its children are gone", lambda: not objects.labelled(kinds, Label.MANAGED))
    assert "tiny" not in objects.kubectl("get", "arctictraining", "-o", "name", "--ignore-not-found")


@contextmanager
def gpus(cluster: Cluster, first: int, second: int) -> Iterator[None]:
    """Let the two nodes have so many of a device for a while, which nothing stands for."""
    names = [node.name for node in cluster.nodes][:2]
    try:
        for name, count in zip(names, (first, second), strict=True):
            set_gpus(cluster, name, str(count))
        yield
    finally:
        for name in names:
            set_gpus(cluster, name, None)


def set_gpus(cluster: Cluster, node: str, count: str | None) -> None:
    had = {"status": {"capacity": {GPU: count}, "allocatable": {GPU: count}}}
    cluster.kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", json.dumps(had))


def has_a_node(objects: StandIns, name: str) -> bool:
    """Whether a pod of a training has a node."""
    return any(pod["spec"].get("nodeName") for pod in objects.pods(name))


def waits_for(objects: StandIns, name: str) -> str:
    """What a training that has not all of its nodes says about that."""
    status = objects.status("arctictraining", name)
    return condition(status, "Degraded")["message"] if status.get("state") == "WaitingForNodes" else ""


def test_of_two_worlds_that_hold_half_of_the_nodes_each_the_younger_gives_way(objects: StandIns) -> None:
    with gpus(objects.cluster, 2, 0):
        for name in ("older", "younger"):
            objects.train(name, resources={"limits": {GPU: 1}})
            objects.eventually(f"{name} holds half", partial(has_a_node, objects, name))
            time.sleep(1)  # ages are in whole seconds
        first = f"ArcticTraining {objects.namespace}/older goes first"
        objects.eventually("the younger says for whom it waits", lambda: first in waits_for(objects, "younger"))
        objects.eventually("its nodes are free", lambda: objects.pods("younger") == [])
        assert objects.status("arctictraining", "older").get("attempts") is None
        set_gpus(objects.cluster, objects.cluster.nodes[1].name, "1")
        objects.running("older", 1)
        objects.kubectl("delete", "arctictraining", "older")
        objects.running("younger", 2)
        (ending,) = objects.status("arctictraining", "younger")["attempts"]
        assert (ending["reason"], ending["counted"]) == ("GaveWay", False)


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
    objects.state("arcticinference", "tiny", "Suspended")
    assert objects.labelled("statefulsets", f"{Label.NAME}=tiny") == []
    assert objects.get("service", "tiny")["metadata"]["labels"][Label.NAME] == "tiny"


def test_what_a_services_pods_mount_is_put_back_when_they_start(objects: StandIns) -> None:
    objects.serve("tiny")
    objects.state("arcticinference", "tiny", "Ready")
    selector = f"{Label.NAME}=tiny"
    objects.kubectl("delete", "secrets,configmaps", "-l", selector)
    objects.kubectl("delete", "pods", "-l", selector, "--wait=false")
    objects.eventually("they are back", lambda: len(objects.labelled("secrets,configmaps", selector)) == 2)
    objects.state("arcticinference", "tiny", "Ready")


def test_an_address_that_is_someone_elses_is_left_alone_and_told(objects: StandIns) -> None:
    objects.kubectl("create", "service", "clusterip", "tiny", "--tcp=80")
    objects.serve("tiny")

    def told() -> dict[str, Any] | None:
        degraded = condition(objects.status("arcticinference", "tiny"), "Degraded")
        return degraded if degraded.get("reason") == "FailedCreate" else None

    message = objects.eventually("it is told", told)["message"]
    assert "Service tiny exists and belongs to something else" in message
    assert objects.get("service", "tiny")["spec"]["ports"][0]["port"] == 80
