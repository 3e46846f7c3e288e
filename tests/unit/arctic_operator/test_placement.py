"""Several worlds and too few nodes, with a scheduler that places pods one by one: none keeps another from starting."""

import asyncio
import itertools
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arctic_api.world import Label
from arctic_operator import observe
from arctic_operator.cache import Key
from arctic_operator.clock import ClusterClock
from arctic_operator.observed import Identity, Job, Rival, TrainingSeen
from arctic_operator.plan.training import plan_training

LOOKS = 60
NO_ROOM = "0/2 nodes are available: 1 Insufficient nvidia.com/gpu, 1 node(s) didn't match pod anti-affinity rules."
BATCH = {"tokensPerStep": 128 * 6}  # which one to three nodes share out evenly


class Machines:
    """Nodes that take a pod each, and what controllers, scheduler and kubelets do; 10 seconds pass with each look."""

    def __init__(self, build, operator, nodes):
        self.build, self.operator, self.server = build, operator, operator.server
        self.nodes, self.passed, self.kept = nodes, 0.0, {}
        self.server.clock = ClusterClock(lambda: self.passed, lambda: build.start + timedelta(seconds=self.passed))
        self.serial = itertools.count()

    @property
    def pods(self):
        return self.server.of("Pod")

    def make(self, labels, indices):
        """Make pods that no node has."""
        for index in indices:
            name = f"p{next(self.serial)}"
            labels = labels | {Label.MANAGED: "true"}
            notes = {"batch.kubernetes.io/job-completion-index": str(index)}
            created = (self.build.start + timedelta(seconds=self.passed)).isoformat()
            metadata = {"name": name, "namespace": "team", "labels": labels, "annotations": notes}
            made = {"creationTimestamp": created, "ownerReferences": [self.build.maker]}
            self.show({"kind": "Pod", "metadata": metadata | made, "spec": {}, "status": {}})

    def show(self, manifest):
        self.operator.cache.put(self.server.put(manifest))

    def look(self, order):
        self.passed += 10
        jobs = {job["metadata"]["uid"]: job for job in self.server.of("Job")}
        worlds = {uid: [pod for pod in self.pods if pod["metadata"]["labels"].get("job") == uid] for uid in jobs}
        for pod in self.pods:
            if pod["metadata"]["labels"].get("job", "") not in {"", *jobs}:
                self.operator.remove("Pod", pod["metadata"]["name"])
        for uid, job in jobs.items():
            if not worlds[uid]:
                kept = {name: job["metadata"]["labels"][name] for name in (Label.UID, Label.NAME, Label.KIND)}
                attempt = {Label.ATTEMPT: job["metadata"]["labels"][Label.ATTEMPT], "job": uid}
                self.make(kept | attempt, range(job["spec"]["completions"]))
        self.schedule(order)
        for uid, job in jobs.items():
            if worlds[uid] and all(pod["status"].get("phase") == "Running" for pod in worlds[uid]):
                self.finish(job, worlds[uid])

    def schedule(self, order):
        """Give free nodes to pods in an order that nobody has promised anything about."""
        used = {pod["spec"].get("nodeName") for pod in self.pods if pod["status"].get("phase") != "Succeeded"}
        free = [f"n{index}" for index in range(self.nodes) if f"n{index}" not in used]
        waiting = [pod for pod in self.pods if not pod["spec"].get("nodeName")]
        waiting.sort(key=lambda pod: order[int(pod["metadata"]["name"][1:]) % len(order)])
        refusal = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": NO_ROOM}
        for pod, node in itertools.zip_longest(waiting, free[: len(waiting)]):
            worker = [{"name": "worker", "state": {"waiting": {}}}]
            status = {"phase": "Pending", "conditions": [] if node else [refusal], "containerStatuses": worker}
            self.show(pod | {"spec": {"nodeName": node} if node else {}, "status": status})
        for pod in self.pods:
            world = [p for p in self.pods if p["metadata"]["labels"].get("job") == pod["metadata"]["labels"].get("job")]
            if all(each["spec"].get("nodeName") for each in world) and pod["status"]["phase"] == "Pending":
                running = [{"name": "worker", "state": {"running": {}}}]
                self.show(pod | {"status": {"phase": "Running", "containerStatuses": running}})

    def finish(self, job, pods):
        report = self.build.report(exportUri="file:///export")
        for pod in pods:
            ended = [{"name": "worker", "state": {"terminated": {"exitCode": 0, "message": report}}}]
            self.show(pod | {"status": {"phase": "Succeeded", "containerStatuses": ended}})
        self.show(job | {"status": {"conditions": [{"type": "Complete", "status": "True"}]}})


async def ended(machines, keys, order, looks=LOOKS):
    """Let time pass until all trainings have succeeded; return their states."""
    for _ in range(looks):
        for key in keys:
            for _ in range(2):
                await machines.operator.reconcile(key)
        machines.look(order)
        states = [machines.operator.status(key).get("state") for key in keys]
        if set(states) == {"Succeeded"}:
            break
    return states


def trainings(operator, sizes):
    names = [f"t{index}" for index in range(len(sizes))]
    return [
        operator.add("ArcticTraining", name, parallelism={"nodes": size}, batch=BATCH)
        for name, size in zip(names, sizes, strict=True)
    ]


@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(
    sizes=st.lists(st.integers(1, 3), min_size=2, max_size=4), order=st.permutations(range(5)), spare=st.integers(0, 1)
)
def test_all_worlds_that_fit_by_themselves_run_in_the_end(build, operator_with, sizes, order, spare):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observe, "RIVALS_EVERY", 0)
        operator = operator_with(build.settings)
        machines = Machines(build, operator, max(sizes) + spare)
        keys = trainings(operator, sizes)
        assert set(asyncio.run(ended(machines, keys, order))) == {"Succeeded"}


async def test_worlds_that_ask_for_other_nodes_do_not_give_way_to_each_other(build, operator, monkeypatch):
    monkeypatch.setattr(observe, "RIVALS_EVERY", 0)
    machines = Machines(build, operator, 2)
    for name, product in (("t0", "H100"), ("t1", "H200")):
        template = {"nodeSelector": {"nvidia.com/gpu.product": product}}
        operator.add("ArcticTraining", name, parallelism={"nodes": 2}, batch=BATCH, template=template)
    keys = [Key("ArcticTraining", "team", name) for name in ("t0", "t1")]
    assert await ended(machines, keys, [0, 2, 1, 3, 4], looks=5) == ["Unschedulable", "Unschedulable"]


async def test_a_training_gives_way_to_a_services_group(build, operator, monkeypatch):
    monkeypatch.setattr(observe, "RIVALS_EVERY", 0)
    machines = Machines(build, operator, 2)
    keys = trainings(operator, [2])
    chat = operator.add("ArcticInference", "chat")
    machines.make({Label.UID: "uid-chat", Label.NAME: "chat", Label.KIND: chat.kind, Label.GROUP: "chat-g0"}, range(2))
    await ended(machines, keys, [0, 2, 1, 3, 4], looks=6)
    assert [record["reason"] for record in operator.status(keys[0])["attempts"]] == ["GaveWay"]
    group = [pod for pod in machines.pods if pod["metadata"]["labels"][Label.NAME] == "chat"]
    assert [pod["status"]["phase"] for pod in group] == ["Running", "Running"]


def test_a_world_that_lost_a_node_waits_for_it_beside_others(build):
    away = "0/2 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }"
    pods = [build.pod(0), build.pod(1, phase="Pending", node="", unschedulable=away)]
    seen = TrainingSeen(**halves(build) | {"pods": pods}, rivals=[rival(build)])
    assert not plan_training(build.training({"attempt": 1}), seen, build.settings, build.seconds(60)).status.get(
        "attempts"
    )


WORDS = "ArcticTraining team/older goes first, and does not have all of its nodes yet"


def halves(build, **fields):
    """A world of which one pod has a node and the other none."""
    lacking = build.pod(1, phase="Pending", node="", unschedulable=NO_ROOM)
    return {
        "jobs": [Job("tiny-a1", "job-1", 1, 1, "r1", created=build.start, **fields)],
        "pods": [build.pod(0), lacking],
    }


def rival(build, seconds=-1, kind="ArcticTraining", holds=True):
    return Rival(Identity(kind, "team", "older", "another"), build.seconds(seconds), holds)


def test_the_younger_of_two_gives_its_nodes_back_uncounted_and_comes_after_the_older(build):
    seen = TrainingSeen(**halves(build), rivals=[rival(build)])
    plan = plan_training(build.training({"attempt": 1}), seen, build.settings, build.seconds(11))
    assert plan.status["state"] == "WaitingForNodes"
    (record,) = plan.status["attempts"]
    assert (record["reason"], record["counted"]) == ("GaveWay", False)
    assert WORDS in record["message"]
    training = build.training(plan.status)
    plan = plan_training(training, seen, build.settings, build.seconds(12))
    assert [delete.kind for delete in plan.delete] == ["Job"]
    waiting = TrainingSeen(rivals=[rival(build, holds=False)])
    plan = plan_training(training, waiting, build.settings, build.seconds(20))
    told = next(condition for condition in plan.status["conditions"] if condition["type"] == "Degraded")
    assert (plan.create, told["status"], told["message"]) == ((), "False", WORDS)
    plan = plan_training(training, TrainingSeen(), build.settings, build.seconds(30))
    assert len(plan.create) == 1


@pytest.mark.parametrize(
    ("other", "queue", "after", "goes"),
    [
        ({}, "", 11, True),
        ({}, "", 9, False),
        ({}, "team", 11, False),
        ({"seconds": 1}, "", 11, False),
        ({"seconds": 1, "kind": "ArcticInference"}, "", 11, True),
        ({"holds": False}, "", 11, False),
    ],
    ids=["an older one", "at once", "in a queue", "a younger one", "a service", "one that holds none"],
)
def test_a_world_that_waits_gives_way_to_who_goes_first_and_holds_some(build, other, queue, after, goes):
    seen = TrainingSeen(**halves(build, queue=queue), rivals=[rival(build, **other)])
    training = build.training({"attempt": 1}, queue=queue or None)
    plan = plan_training(training, seen, build.settings, build.seconds(after))
    assert bool(plan.status.get("attempts")) == goes


def test_a_world_that_is_whole_or_has_nothing_keeps_what_it_has(build):
    for nodes in (("n0", "n1"), ("", "")):
        pods = [
            build.pod(i, node=node, phase="Running" if node else "Pending", unschedulable="" if node else NO_ROOM)
            for i, node in enumerate(nodes)
        ]
        seen = TrainingSeen(**halves(build) | {"pods": pods}, rivals=[rival(build)])
        plan = plan_training(build.training({"attempt": 1}), seen, build.settings, build.seconds(60))
        assert not plan.status.get("attempts")
