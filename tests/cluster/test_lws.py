"""Inference groups as LeaderWorkerSets, on the real definition and controller: `--peers` builds it first (minutes)."""

import json
from collections.abc import Iterator
from typing import Any

import leader_worker_sets
import pytest
from objects import condition, is_ready, until_all_ready
from stand_in import StandIns, preferring

from arctic_api.world import Label
from arctic_cli.demo import install_operator
from arctic_cluster import Cluster
from arctic_cluster.manifests import SYSTEM_NAMESPACE
from arctic_operator.observed import POD_INDEX_LABEL

pytestmark = pytest.mark.timeout(1200)  # the first test waits for what is built
MADE = "leaderworkersets,statefulsets"
ALL = f"{MADE},pods,services,deployments,networkpolicies,poddisruptionbudgets,secrets,configmaps,controllerrevisions"
KNOWS = """
import json, os, socket
world = json.loads(os.environ["ARCTIC_WORLD"])
print(json.dumps([os.environ["ARCTIC_NODE_RANK"], *map(socket.gethostbyname, world["hosts"])]))
"""


@pytest.fixture(scope="module")
def lacking(operator: Cluster, stand_in: None) -> Iterator[Cluster]:
    """The operator, told to make LeaderWorkerSets in a cluster that has none, and kept on the first node."""
    node = operator.nodes[0].name
    values = ("inference.groups=LeaderWorkerSet", rf"nodeSelector.kubernetes\.io/hostname={node}")
    install_operator(operator, *(f"--set={value}" for value in values))
    yield operator
    install_operator(operator)


@pytest.fixture(scope="module")
def served(lacking: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The same cluster with LeaderWorkerSet."""
    with leader_worker_sets.running(lacking, tmp_path_factory.mktemp("lws")):
        yield lacking


@pytest.fixture
def objects(served: Cluster, namespace: str) -> StandIns:
    return StandIns(served, namespace)


def pods(objects: StandIns) -> list[dict[str, Any]]:
    """Return the pods of the service by pipeline rank."""
    return sorted(objects.pods("tiny", "ArcticInference"), key=lambda pod: pod["metadata"]["labels"][POD_INDEX_LABEL])


def kinds(objects: StandIns) -> list[str]:
    """Return the kinds of the groups' sets that are the operator's own."""
    return [each["kind"] for each in objects.labelled(MADE, f"{Label.NAME}=tiny")]


def uids(found: list[dict[str, Any]]) -> set[str]:
    return {each["metadata"]["uid"] for each in found}


def ready_anew(objects: StandIns, old: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the two ready pods of the service once the old ones are gone."""

    def anew() -> list[dict[str, Any]] | None:
        found = pods(objects)
        return found if len(found) == 2 and all(map(is_ready, found)) and not uids(found) & uids(old) else None

    return objects.eventually("the pods of another group are ready", anew, 240)


def test_a_cluster_without_them_is_told_and_serves_when_it_has_them(
    lacking: Cluster, namespace: str, request: pytest.FixtureRequest
) -> None:
    objects = StandIns(lacking, namespace)
    objects.serve("tiny")

    def told() -> bool:
        return condition(objects.status("arcticinference", "tiny"), "Degraded").get("reason") == "NoLeaderWorkerSets"

    objects.eventually("what is missing is told", told)
    message = condition(objects.status("arcticinference", "tiny"), "Degraded")["message"]
    assert "install LeaderWorkerSet, or set inference.groups to StatefulSet" in message
    logs = lacking.kubectl("logs", "-n", SYSTEM_NAMESPACE, "-l", "app.kubernetes.io/name=arctic-operator", "--tail=-1")
    assert message in logs
    request.getfixturevalue("served")
    objects.state("arcticinference", "tiny", "Ready")
    assert kinds(objects) == ["LeaderWorkerSet"]


def test_a_group_has_the_ranks_hosts_and_labels_of_every_group(objects: StandIns) -> None:
    objects.serve("tiny")
    status = objects.state("arcticinference", "tiny", "Ready")
    leader, worker = pods(objects)
    (group,) = objects.labelled(MADE, f"{Label.NAME}=tiny")
    name = group["metadata"]["name"]
    assert [pod["metadata"]["name"] for pod in (leader, worker)] == [f"{name}-0", f"{name}-0-1"]
    assert uids(objects.labelled("pods", status["selector"])) == uids([leader])
    assert leader["spec"]["nodeName"] != worker["spec"]["nodeName"]
    addresses = [pod["status"]["podIP"] for pod in (leader, worker)]
    for rank, pod in enumerate((leader, worker)):
        python = "/opt/arctic/bin/python3"
        knows = objects.kubectl("exec", pod["metadata"]["name"], "--", python, "-c", KNOWS)
        assert json.loads(knows) == [str(rank), *addresses]
        assert pod["metadata"]["labels"][Label.GROUP] == name

    def guarded() -> bool:
        budget = objects.get("poddisruptionbudget", name).get("status", {})
        return (budget.get("expectedPods"), budget.get("disruptionsAllowed")) == (2, 0)

    objects.eventually("neither pod may be evicted", guarded)
    available = condition(objects.get("leaderworkerset", name)["status"], "Available")
    assert available["status"] == "True", "its own status is for those who look at nothing else"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_group_that_has_lost_a_pod_heals(objects: StandIns, rank: int) -> None:
    objects.serve("tiny")
    objects.state("arcticinference", "tiny", "Ready")
    lost = pods(objects)[rank]
    objects.kubectl("delete", "pod", lost["metadata"]["name"])
    objects.eventually("it is not ready", lambda: objects.status("arcticinference", "tiny")["readyReplicas"] == 0)
    objects.state("arcticinference", "tiny", "Ready")
    assert lost["metadata"]["uid"] not in uids(pods(objects))


def test_a_rollout_drains_the_old_group_and_leaves_nothing_of_it(objects: StandIns) -> None:
    objects.serve("tiny", rollout={"drainTimeout": "2s", "maxSurge": 0, "maxUnavailable": 1})
    objects.state("arcticinference", "tiny", "Ready")
    before, (old,) = pods(objects), objects.labelled("leaderworkersets", f"{Label.NAME}=tiny")
    objects.serve("tiny", {"NEW": "yes"}, rollout={"drainTimeout": "2s", "maxSurge": 0, "maxUnavailable": 1})
    ready_anew(objects, before)
    objects.state("arcticinference", "tiny", "Ready")
    name = old["metadata"]["name"]

    def left() -> list[str]:
        lines = objects.kubectl("get", ALL, "-o", "name").split()
        return [line for line in lines if line.rpartition("/")[2].startswith(name)]

    objects.eventually("nothing of the old group is left", lambda: not left())
    assert kinds(objects) == ["LeaderWorkerSet"]


def test_groups_that_run_stay_when_others_are_asked_for_and_go_when_they_are_replaced(objects: StandIns) -> None:
    rollout = {"drainTimeout": "2s", "maxSurge": 0, "maxUnavailable": 1}
    objects.serve("tiny", rollout=rollout)
    objects.state("arcticinference", "tiny", "Ready")
    before = pods(objects)
    install_operator(objects.cluster)
    try:
        objects.kubectl("annotate", "arcticinference", "tiny", "look=again")
        objects.kubectl("patch", "arcticinference", "tiny", "--type=merge", "-p", '{"spec": {"startDeadline": "1h"}}')
        generation = objects.get("arcticinference", "tiny")["metadata"]["generation"]
        objects.eventually(
            "the edit is seen",
            lambda: objects.status("arcticinference", "tiny")["observedGeneration"] == generation,
        )
        assert uids(pods(objects)) == uids(before)
        objects.serve("tiny", {"NEW": "yes"}, rollout=rollout)
        ready_anew(objects, before)
        assert kinds(objects) == ["StatefulSet"]
    finally:
        install_operator(objects.cluster, "--set=inference.groups=LeaderWorkerSet")


def test_why_no_pods_are_made_is_told(objects: StandIns) -> None:
    objects.kubectl("create", "quota", "none", "--hard=pods=0")
    objects.serve("tiny")
    status = objects.state("arcticinference", "tiny", "PodsNotCreated")
    assert "exceeded quota: none" in condition(status, "Degraded")["message"]
    objects.kubectl("delete", "quota", "none")
    objects.state("arcticinference", "tiny", "Ready")


def test_workers_of_a_leader_on_a_lost_node_make_room(objects: StandIns) -> None:
    install_operator(
        objects.cluster,
        "--set=inference.groups=LeaderWorkerSet",
        rf"--set=nodeSelector.kubernetes\.io/hostname={objects.cluster.nodes[0].name}",
    )
    node = objects.cluster.nodes[1]
    objects.serve("tiny", template=preferring(node))
    objects.state("arcticinference", "tiny", "Ready")
    leader, worker = pods(objects)
    assert leader["spec"]["nodeName"] == node.name
    objects.cluster.cut(node.name)
    try:

        def made_room() -> bool:
            found = objects.labelled("pods", f"{Label.NAME}=tiny,{Label.ROLE}=worker")
            return worker["metadata"]["uid"] not in uids(found) and leader["metadata"]["uid"] in uids(found)

        objects.eventually("the worker is gone, though its leader can't go", made_room, 240)
    finally:
        objects.cluster.mend(node.name)
        until_all_ready(objects.cluster)
    objects.state("arcticinference", "tiny", "Ready")


def test_a_service_that_is_deleted_leaves_nothing(objects: StandIns) -> None:
    objects.serve("tiny")
    objects.state("arcticinference", "tiny", "Ready")
    objects.kubectl("delete", "arcticinference", "tiny", "--wait=false")

    def left() -> list[str]:
        lines = objects.kubectl("get", ALL, "-o", "name").split()
        return [line for line in lines if line.rpartition("/")[2].startswith("tiny")]

    objects.eventually("nothing is left", lambda: not left())
