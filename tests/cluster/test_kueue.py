"""Trainings in a queue, on the real Kueue: `--peers` builds it first (minutes)."""

import json
from collections.abc import Iterator
from typing import Any

import kueue
import pytest
from objects import condition
from stand_in import StandIns

from arctic_api.world import Label
from arctic_cluster import Cluster

pytestmark = pytest.mark.timeout(1200)  # the first test waits for what is built
QUEUE = "team"
RESOURCES = {"requests": {"cpu": "200m"}}
QUOTA = "400m"
"""Two pods of one training."""


@pytest.fixture(scope="module")
def queues(operator: Cluster, stand_in: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster with Kueue, a queue for one training at a time, and a class of trainings that come first."""
    with kueue.running(operator, tmp_path_factory.mktemp("kueue")):
        flavor = {"name": "default", "resources": [{"name": "cpu", "nominalQuota": QUOTA}]}
        made = [
            kueue_object("ResourceFlavor", "default"),
            kueue_object(
                "ClusterQueue",
                "all",
                namespaceSelector={},
                preemption={"withinClusterQueue": "LowerPriority"},
                resourceGroups=[{"coveredResources": ["cpu"], "flavors": [flavor]}],
            ),
            {
                "apiVersion": "scheduling.k8s.io/v1",
                "kind": "PriorityClass",
                "metadata": {"name": "urgent"},
                "value": 1000,
            },
        ]
        operator.apply(made)
        yield operator
        operator.kubectl("delete", "clusterqueue/all", "resourceflavor/default", "priorityclass/urgent", "--wait=false")


def kueue_object(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": kind, "metadata": {"name": name}, "spec": spec}


@pytest.fixture
def objects(queues: Cluster, namespace: str) -> StandIns:
    objects = StandIns(queues, namespace)
    objects.kubectl("apply", "-f", "-", stdin=json.dumps(kueue_object("LocalQueue", QUEUE, clusterQueue="all")))
    return objects


def waits(objects: StandIns, name: str, words: str) -> None:
    """Return when a training is in its queue, for a reason in which these words are."""

    def look() -> bool:
        status = objects.status("arctictraining", name)
        return status.get("state") == "Queued" and words in condition(status, "Degraded")["message"]

    objects.eventually(f"{name} waits: {words}", look)


def test_a_cluster_without_kueue_is_told(operator: Cluster, stand_in: None, namespace: str) -> None:
    objects = StandIns(operator, namespace)
    objects.train("tiny", queue=QUEUE)

    def told() -> bool:
        return condition(objects.status("arctictraining", "tiny"), "Degraded").get("reason") == "NoKueue"

    objects.eventually("what is missing is told", told)
    objects.train("tiny")
    objects.running("tiny", attempt=2)


def test_a_queue_admits_preempts_and_admits_again(objects: StandIns) -> None:
    objects.train("first", queue=QUEUE, resources=RESOURCES)
    objects.running("first", attempt=1)
    objects.train("urgent", {"SECONDS": "5"}, queue=QUEUE, resources=RESOURCES, priorityClassName="urgent")
    waits(objects, "first", "insufficient unused quota")
    objects.state("arctictraining", "urgent", "Succeeded")
    objects.running("first", attempt=2)
    status = objects.status("arctictraining", "first")
    assert [(each["reason"], each["counted"]) for each in status["attempts"]] == [("Preempted", False)]
    assert status["restarts"] == 0
    worlds = {pod["metadata"]["labels"][Label.ATTEMPT] for pod in objects.pods("first")}
    assert worlds == {"2"}


def test_a_queue_that_is_not_there_is_told_in_kueues_words_and_another_takes_the_training(
    objects: StandIns,
) -> None:
    objects.train("tiny", {"SECONDS": "1"}, queue="nowhere", resources=RESOURCES)
    waits(objects, "tiny", "LocalQueue nowhere doesn't exist")
    objects.train("tiny", {"SECONDS": "1"}, queue=QUEUE, resources=RESOURCES)
    objects.state("arctictraining", "tiny", "Succeeded")


def test_a_training_that_is_suspended_gives_its_place_to_the_next(objects: StandIns) -> None:
    objects.train("first", queue=QUEUE, resources=RESOURCES)
    objects.running("first", attempt=1)
    objects.train("second", {"SECONDS": "1"}, queue=QUEUE, resources=RESOURCES)
    waits(objects, "second", "insufficient unused quota")
    objects.change("arctictraining", "first", suspend=True)
    objects.state("arctictraining", "second", "Succeeded")
