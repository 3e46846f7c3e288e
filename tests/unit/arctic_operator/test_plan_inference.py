"""Plans of inference groups, one by one and over whole rollouts: a small world that starts and stops pods, no clock."""

import json
import re
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from simulated_groups import START_SECONDS, Cluster

from arctic_api.common import BaseWeights, Condition
from arctic_api.inference import ArcticInferenceStatus
from arctic_api.world import InferenceGroup, Label
from arctic_operator.access import access_of
from arctic_operator.live import InferenceObservation, Live, Phase
from arctic_operator.observed import (
    DRAINING_ANNOTATION,
    LEADER_WORKER_SET,
    GatewayDown,
    GroupSet,
    InferenceSeen,
    Node,
    Owner,
    format_time,
    read_status,
    revision_seen_of,
)
from arctic_operator.plan.actions import Mark
from arctic_operator.plan.conditions import events_between
from arctic_operator.plan.inference import SETTLE, plan_inference
from arctic_operator.plan.inference_history import KEPT


def fields(replicas, surge, unavailable, image="one", pipeline=2):
    return {
        "replicas": replicas,
        "rollout": {"maxSurge": surge, "maxUnavailable": unavailable, "drainTimeout": "20s"},
        "engine": {"name": "native", "image": image},
        "parallelism": {"pipeline": pipeline},
    }


def condition(status, kind):
    return next(c for c in status["conditions"] if c["type"] == kind)


def test_a_group_is_a_pod_a_node_and_ready_only_as_a_whole(build):
    cluster = Cluster(build, build.inference())
    plan = cluster.reconcile()
    (manifest,) = plan.create
    spec = manifest["spec"]
    assert (spec["replicas"], spec["podManagementPolicy"]) == (2, "Parallel")
    assert spec["updateStrategy"] == {"type": "OnDelete"}
    (term,) = spec["template"]["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"] == spec["selector"]["matchLabels"]
    (container,) = spec["template"]["spec"]["containers"]
    (text,) = [item["value"] for item in container["env"] if item["name"] == "ARCTIC_WORLD"]
    world = InferenceGroup.model_validate_json(text)
    name = manifest["metadata"]["name"]
    assert world.hosts == [f"{name}-0.{name}.team.svc", f"{name}-1.{name}.team.svc"]
    assert world.model_folder == "/weights"

    cluster.tick(START_SECONDS)
    half = cluster.pods[name, 1]
    cluster.pods[name, 1] = replace(half, ready_since=None)
    assert cluster.reconcile().status["readyReplicas"] == 0
    cluster.pods[name, 1] = half
    cluster.tick(SETTLE.total_seconds())
    assert cluster.reconcile().status["readyReplicas"] == 1


def test_a_service_is_ready_only_once_the_gateway_has_noticed_its_leader(build):
    cluster = Cluster(build, build.inference())
    cluster.reconcile()
    cluster.tick(START_SECONDS)
    assert cluster.reconcile().status["state"] == "Starting"
    cluster.tick(SETTLE.total_seconds())
    assert cluster.reconcile().status["state"] == "Ready"


@pytest.mark.parametrize("ahead", [timedelta(seconds=15), timedelta(hours=1)])
def test_a_leader_whose_kubelets_clock_is_ahead_is_noticed_as_soon_as_others(build, ahead):
    cluster = Cluster(build, build.inference(parallelism={"pipeline": 1}))
    cluster.reconcile()
    cluster.tick(START_SECONDS)
    [(place, pod)] = cluster.pods.items()
    cluster.pods[place] = replace(pod, ready_since=cluster.now + ahead)
    assert cluster.reconcile().status["state"] == "Starting"
    for _ in range(60):
        cluster.tick(SETTLE.total_seconds())
        assert cluster.reconcile().status["state"] == "Ready"
    cluster.pods[place] = replace(pod, ready_since=cluster.now + ahead)
    assert cluster.reconcile().status["state"] == "Starting", "it was not ready meanwhile"


def test_a_service_is_ready_in_a_moment_though_the_clusters_clock_is_set_back(build):
    cluster = Cluster(build, build.inference(**fields(2, 1, 0)))
    cluster.run(40)
    cluster.now -= timedelta(hours=1)
    cluster.run(12)
    assert cluster.status["state"] == "Ready"
    cluster.now -= timedelta(hours=1)
    cluster.run(12)
    assert cluster.status["state"] == "Ready"


@given(
    replicas=st.integers(1, 3),
    surge=st.integers(0, 2),
    unavailable=st.integers(0, 2),
    edits=st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from(["one", "two", "three"]), st.integers(1, 3)),
        min_size=1,
        max_size=4,
    ),
    busy=st.booleans(),
)
@settings(max_examples=20)
def test_a_rollout_keeps_enough_groups_serving_and_never_takes_more_nodes_than_allowed(
    build, replicas, surge, unavailable, edits, busy
):
    if surge == 0 and unavailable == 0:
        surge = 1
    cluster = Cluster(build, build.inference(**fields(replicas, surge, unavailable)))
    cluster.run(40)
    assert len(cluster.serving) == replicas
    if busy:
        cluster.busy.update(cluster.groups)

    def enough(it):
        assert len(it.serving) >= replicas - unavailable
        assert len(it.groups) <= replicas + surge

    generation = 1
    for wait, image, pipeline in edits:
        generation += 1
        cluster.edit(build, generation, **fields(replicas, surge, unavailable, image, pipeline))
        cluster.run(wait, enough, step=2)
    cluster.run(260, enough, step=2)
    assert len(cluster.groups) == len(cluster.serving) == replicas
    assert {group.revision for group in cluster.groups.values()} == {cluster.status["revision"]}
    assert cluster.status["state"] == "Ready"
    assert condition(cluster.status, "Ready")["status"] == "True"


def test_half_of_a_group_is_not_ready_whatever_the_new_shape_is(build):
    cluster = Cluster(build, build.inference(**fields(1, 1, 0)))
    cluster.run(30)
    (old,) = cluster.groups
    cluster.edit(build, 2, **fields(1, 1, 0, pipeline=1))
    del cluster.pods[old, 1]
    assert cluster.reconcile().status["readyReplicas"] == 0


def test_going_back_in_mid_rollout_keeps_the_groups_that_serve(build):
    cluster = Cluster(build, build.inference(**fields(2, 1, 0)))
    cluster.run(30)
    before = set(cluster.groups)
    cluster.edit(build, 2, **fields(2, 1, 0, "broken"))
    cluster.reconcile()
    (new,) = set(cluster.groups) - before
    cluster.broken = {new}
    cluster.run(60)
    assert condition(cluster.status, "Available")["status"] == "True"
    assert condition(cluster.status, "Ready")["status"] == "False"
    assert set(cluster.serving) == before
    cluster.go_back(build, 3, **fields(2, 1, 0))
    cluster.run(30)
    assert set(cluster.groups) == before


def draining(build):
    """A service of which the second group drains, and is busy; and the names of both."""
    cluster = Cluster(build, build.inference(**fields(2, 1, 0)))
    cluster.run(30)
    first, second = sorted(cluster.groups)
    cluster.go_back(build, 2, **fields(1, 1, 0))
    cluster.busy = {second}
    cluster.run(1)
    return cluster, first, second


def test_a_draining_group_goes_when_it_is_idle_or_its_time_is_over(build):
    cluster, first, second = draining(build)
    assert cluster.groups[second].draining_since
    assert cluster.pods[second, 0].routing == "off"
    cluster.run(28)
    assert second in cluster.groups
    cluster.busy = set()
    cluster.run(1)
    assert set(cluster.groups) == {first}


def test_without_a_view_of_nodes_a_group_is_lost_whose_pod_nobody_ends(build):
    """The cluster deletes the pods of a node that is gone after a while, and no kubelet is there to end them."""
    cluster = Cluster(build, build.inference(**fields(1, 0, 1)))
    cluster.sees_nodes = False
    cluster.run(30)
    (old,) = cluster.groups
    gone = cluster.pods[old, 1]
    cluster.nodes[gone.node] = Node(gone.node, False, cluster.now, False)
    cluster.run(60)
    assert set(cluster.groups) == {old}
    cluster.pods[old, 1] = replace(gone, ready_since=None, delete_requested=cluster.now, grace_seconds=30)
    cluster.run(59)
    assert set(cluster.groups) == {old}
    cluster.run(30)
    assert old not in cluster.groups
    assert len(cluster.serving) == 1


def test_a_group_that_is_marked_to_drain_in_times_to_come_goes_in_its_time_all_the_same(build):
    cluster, first, second = draining(build)
    later = format_time(cluster.now + timedelta(days=1))
    cluster.mark(Mark(cluster.groups[second].kind, "default", second, "", annotations={DRAINING_ANNOTATION: later}))
    cluster.run(1)
    assert cluster.groups[second].draining_since <= cluster.now
    cluster.run(300)
    assert set(cluster.groups) == {first}


def test_a_lost_node_takes_its_group_out_at_once_and_a_new_name_replaces_it(build):
    cluster = Cluster(build, build.inference(**fields(1, 0, 1)))
    cluster.run(30)
    (old,) = cluster.groups
    node = cluster.pods[old, 1].node
    cluster.nodes[node] = Node(node, False, cluster.now, False)
    cluster.run(8)
    assert set(cluster.groups) == {old}
    cluster.run(3)
    assert old not in cluster.groups
    cluster.run(30)
    assert len(cluster.serving) == 1


def lose_a_node(cluster, **peer):
    """Let the node of a group's second pod be silent, and the first pod be as told; return the group's name."""
    (name,) = cluster.groups
    node = cluster.pods[name, 1].node
    cluster.nodes[node] = Node(node, False, cluster.now, False)
    cluster.pods[name, 0] = replace(cluster.pods[name, 0], **peer)
    cluster.reconcile()
    return name


def test_a_group_whose_ranks_have_lost_the_one_on_a_silent_node_is_not_waited_for(build):
    cluster = Cluster(build, build.inference(**fields(1, 0, 1)))
    cluster.run(30)
    word = build.report("failed", reason="GroupBroken", message="rank 1 has been silent for 20 s")
    old = lose_a_node(cluster, ready_since=None, exit_code=1, exit_message=word)
    assert old not in cluster.groups
    cluster.run(30)
    assert len(cluster.serving) == 1


@pytest.mark.parametrize(("serves", "reason"), [(True, "GroupBroken"), (False, "OSError"), (False, None)])
def test_a_silent_node_alone_may_come_back(build, serves, reason):
    """What a rank said before it served again, or of other things, is no word about the node."""
    cluster = Cluster(build, build.inference(**fields(1, 0, 1)))
    cluster.run(30)
    word = build.report("failed", reason=reason) if reason else ""
    since = cluster.now if serves else None
    assert lose_a_node(cluster, ready_since=since, exit_code=1, exit_message=word) in cluster.groups


def test_a_cordoned_node_is_emptied_without_a_gap(build):
    cluster = Cluster(build, build.inference(**fields(2, 1, 0)))
    cluster.run(30)
    node = cluster.pods[sorted(cluster.groups)[0], 0].node
    cluster.nodes[node] = Node(node, True, cluster.now, True)
    served = []
    cluster.run(120, lambda it: served.append(len(it.serving)))
    assert min(served) >= 2
    assert node not in {pod.node for pod in cluster.pods.values()}


def test_a_cordoned_node_is_emptied_while_a_rollout_is_paused(build):
    cluster = Cluster(build, build.inference(**fields(2, 1, 0)))
    cluster.run(30)
    paused = fields(2, 1, 0, "two")
    paused["rollout"]["paused"] = True
    cluster.edit(build, 2, **paused)
    left, stays = sorted(cluster.groups)
    node = cluster.pods[left, 0].node
    cluster.nodes[node] = Node(node, True, cluster.now, True)
    cluster.run(60, lambda it: assert_bounds(it, 2, 3))
    assert left not in cluster.groups
    assert stays in cluster.groups
    assert len(cluster.serving) == 2


@pytest.mark.parametrize("which", ["on", "canary"])
def test_a_cordoned_node_is_emptied_of_a_canary_that_is_paused(build, which):
    cluster = Cluster(build, build.inference(**with_canary("50%", 2, 1, 0)))
    cluster.run(30)
    cluster.edit(build, 2, **with_canary("50%", 2, 1, 0, "two"))
    cluster.run(60)
    before = dict(zip(("on", "canary"), tracks(cluster), strict=True))
    paused = with_canary("50%", 2, 1, 0, "two")
    paused["rollout"]["paused"] = True
    cluster.edit(build, 3, **paused)
    (left,) = before.pop(which)
    node = cluster.pods[left, 0].node
    cluster.nodes[node] = Node(node, True, cluster.now, True)
    cluster.run(80, lambda it: assert_bounds(it, 2, 3))
    after = dict(zip(("on", "canary"), tracks(cluster), strict=True))
    assert left not in cluster.groups
    assert [len(names) for names in after.values()] == [1, 1]
    assert after.items() >= before.items()


def test_suspend_removes_all_groups_and_keeps_the_gateway(build):
    cluster = Cluster(build, build.inference(**fields(2, 1, 0)))
    cluster.run(30)
    cluster.edit(build, 2, **fields(2, 1, 0), suspend=True)
    cluster.run(60)
    assert cluster.groups == {}
    assert cluster.status["state"] == "Suspended"
    assert "Deployment" in {manifest["kind"] for manifest in cluster.reconcile().apply}


def test_a_paused_rollout_stays_where_it_is_but_replaces_what_breaks(build):
    cluster = Cluster(build, build.inference(**fields(2, 1, 0)))
    cluster.run(30)
    before = set(cluster.groups)
    paused = fields(2, 1, 0, "two")
    paused["rollout"]["paused"] = True
    cluster.edit(build, 2, **paused)
    cluster.run(60)
    assert set(cluster.groups) == before
    del cluster.groups[sorted(before)[0]]
    cluster.run(60)
    assert len(cluster.groups) == 2


def templates(cluster):
    """What the pods of each group were made of, but for names and numbers of the group itself."""
    made = {}
    for name, raw in cluster.raw.items():
        text = json.dumps(raw["spec"]["template"], sort_keys=True)
        made[name] = text.replace(name, "NAME").replace(
            cluster.groups[name].revision if name in cluster.groups else "", ""
        )
    return made


def test_a_service_goes_back_to_an_earlier_revision_as_it_was_and_forward_again(build):
    cluster = Cluster(build, build.inference(**fields(2, 1, 0)))
    cluster.run(30)
    first, before = cluster.status["revision"], templates(cluster)
    enough = lambda it: assert_bounds(it, 2, 3)  # noqa: E731
    cluster.edit(build, 2, **fields(2, 1, 0, "two", pipeline=1))
    cluster.run(120, enough, step=2)
    second = cluster.status["revision"]
    assert [each["name"] for each in cluster.status["revisions"]] == [second, first]

    back = fields(2, 1, 0, "three", pipeline=3)
    back["rollout"]["toRevision"] = first
    cluster.edit(build, 3, **back)
    cluster.run(120, enough, step=2)
    assert {group.revision for group in cluster.groups.values()} == {first}
    assert (cluster.status["state"], cluster.status["revision"]) == ("Ready", first)
    again = templates(cluster)
    assert {worlds_apart(again[name]) for name in cluster.groups} == {worlds_apart(text) for text in before.values()}

    cluster.edit(build, 4, **fields(2, 1, 0, "two", pipeline=1))
    cluster.run(120, enough, step=2)
    # An edit to what there was already is that revision again.
    assert {group.size for group in cluster.groups.values()} == {1}


def worlds_apart(text):
    """What a pod is told of the rollout itself differs, and it has no say in what the pod is."""
    return re.sub(r', ?\\"rollout\\": ?\{[^}]*\}', "", text)


def assert_bounds(cluster, least, most):
    assert len(cluster.serving) >= least
    assert len(cluster.groups) <= most


def test_a_revision_that_is_not_there_is_told_and_nothing_moves(build):
    cluster = Cluster(build, build.inference(**fields(2, 1, 0)))
    cluster.run(30)
    before, revision = set(cluster.groups), cluster.status["revision"]
    wrong = fields(2, 1, 0, "two")
    wrong["rollout"]["toRevision"] = "nobody"
    cluster.edit(build, 2, **wrong)
    cluster.run(30)
    assert set(cluster.groups) == before
    degraded = condition(cluster.status, "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "NoSuchRevision")
    assert degraded["message"].endswith(f"write one of {revision}")
    del cluster.groups[min(before)]
    cluster.run(30)
    assert {group.revision for group in cluster.groups.values()} == {revision}, "what breaks is made as it was"


def test_a_revision_in_use_whose_record_somebody_has_deleted_is_never_made_of_another(build):
    cluster = Cluster(build, build.inference(**fields(2, 1, 0, "one")))
    cluster.run(30)
    first, before = cluster.status["revision"], set(cluster.groups)
    back = fields(2, 1, 0, "two")
    back["rollout"]["toRevision"] = first
    cluster.edit(build, 2, **back)
    cluster.run(30)
    (record,) = cluster.history
    kept = cluster.history.pop(record)
    cluster.run(30)
    assert (set(cluster.groups), cluster.status["revision"]) == (before, first)
    lost = min(cluster.groups)
    del cluster.groups[lost]
    cluster.pods = {place: pod for place, pod in cluster.pods.items() if place[0] != lost}
    cluster.run(30)
    assert set(cluster.groups) == before - {lost}, "nobody knows any more what it was made of"
    assert cluster.history == {}
    degraded = condition(cluster.status, "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "NoSuchRevision")
    cluster.history[record] = kept
    cluster.run(60)
    assert [group.revision for group in cluster.groups.values()] == [first] * 2
    del cluster.history[record], back["rollout"]["toRevision"]
    cluster.edit(build, 3, **back)
    cluster.run(120)
    assert [group.revision for group in cluster.groups.values()] == [cluster.status["revision"]] * 2
    assert (cluster.status["revision"] != first, cluster.status["state"]) == (True, "Ready")


def test_a_service_that_nobody_may_use_is_not_available_whatever_else_is_wrong(build):
    rollout = {"toRevision": "none"}
    cluster = Cluster(build, build.inference(rollout=rollout))
    cluster.run(20)
    cluster.access = access_of("people", None)
    cluster.run(2)
    assert condition(cluster.status, "Available")["status"] == "False"
    assert condition(cluster.status, "Degraded")["reason"] == "NoKeys"


def test_so_many_revisions_are_kept_and_those_in_use(build):
    cluster = Cluster(build, build.inference(**fields(1, 1, 0)))
    cluster.run(20)
    first = cluster.status["revision"]
    cluster.broken = {f"tiny-0a1b2-{number}" for number in range(100)}
    for generation in range(2, KEPT + 6):
        cluster.edit(build, generation, **fields(1, 1, 0, f"image-{generation}"))
        cluster.run(1)
    names = [each["name"] for each in cluster.status["revisions"]]
    assert first in names, "its group serves still"
    assert KEPT <= len(names) <= KEPT + 3
    assert {record["metadata"]["name"].rpartition("-")[2] for record in cluster.history.values()} >= set(names[:KEPT])


def test_a_training_that_exports_anew_is_another_revision_with_the_old_weights_to_go_back_to(build):
    old, new = (BaseWeights(training="base", folder=f"/weights/{name}", claim_name="store") for name in ("old", "new"))
    inference = build.inference(model={"training": "base"}, rollout={})
    plan = plan_inference(inference, InferenceSeen(base=old), build.settings, build.start)
    (record,) = [each for each in plan.apply if each["kind"] == "ControllerRevision"]
    first = record["metadata"]["labels"][Label.REVISION.value]
    made = {"uid": "record-1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    history = [revision_seen_of(record | {"metadata": record["metadata"] | made})]
    back = build.inference(model={"training": "base"}, rollout={"toRevision": first}, generation=2)
    plan = plan_inference(back, InferenceSeen(base=new, history=history), build.settings, build.start)
    (container,) = plan.create[0]["spec"]["template"]["spec"]["containers"]
    (text,) = [item["value"] for item in container["env"] if item["name"] == "ARCTIC_WORLD"]
    assert InferenceGroup.model_validate_json(text).model_folder == "/weights/old"


def test_an_upgrade_that_computes_revisions_otherwise_leaves_groups_alone(build):
    cluster = Cluster(build, build.inference(**fields(1, 1, 0)))
    cluster.run(30)
    before = set(cluster.groups)
    upgraded = replace(cluster.inference, revision="computed-otherwise")
    harmless_edit = replace(upgraded, generation=2)
    next_upgrade = replace(harmless_edit, revision="otherwise-again")
    for inference in (upgraded, harmless_edit, next_upgrade):
        cluster.inference = inference
        cluster.run(30)
        assert set(cluster.groups) == before
    cluster.edit(build, 3, **fields(1, 1, 0, "two"))
    cluster.run(60)
    assert not set(cluster.groups) & before


def test_a_service_waits_for_the_weights_of_its_training_and_mounts_their_claim(build):
    inference = build.inference(model={"training": "base"})
    plan = plan_inference(inference, InferenceSeen(), build.settings, build.start)
    assert (plan.create, plan.status["state"]) == ((), "WaitingForTraining")
    assert "Service" in {manifest["kind"] for manifest in plan.apply}
    base = BaseWeights(training="base", folder="/var/lib/arctic/store/team/base-12345/export", claim_name="store")
    plan = plan_inference(inference, InferenceSeen(base=base), build.settings, build.start)
    volumes = plan.create[0]["spec"]["template"]["spec"]["volumes"]
    assert {"claimName": "store", "readOnly": True} in [volume.get("persistentVolumeClaim") for volume in volumes]


def test_no_group_goes_for_weights_that_are_not_there(build):
    old = BaseWeights(training="base", folder="/weights", claim_name="store")
    fields = {"model": {"training": "base"}, "rollout": {"maxSurge": 1, "maxUnavailable": 1}}
    made = plan_inference(build.inference(**fields), InferenceSeen(base=old), build.settings, build.start).create[0]
    group = build.group_set_of(
        made | {"metadata": made["metadata"] | {"uid": "set-1", "creationTimestamp": "2026-01-01T00:00:00Z"}}
    )
    pods = [build.pod(i, attempt=None, group=group.name, ready_since=build.start) for i in range(2)]
    edited = build.inference(generation=2, **fields | {"model": {"training": "other"}})
    plan = plan_inference(edited, InferenceSeen([group], pods), build.settings, build.seconds(60))
    assert (plan.create, plan.mark, plan.delete) == ((), (), ())
    assert condition(plan.status, "Available")["status"] == "True"


@pytest.mark.parametrize(("lived", "code", "remade"), [(61, 1, True), (5, 1, False), (61, 64, False)])
def test_a_pod_that_served_is_remade_at_once_instead_of_backing_off(build, lived, code, remade):
    name = "tiny-0a1b2-abc123-g0"
    group = GroupSet("StatefulSet", name, "set-1", 1, "abc123", 2, "s1", build.start)
    crashed = build.pod(1, attempt=None, group=name, waiting="CrashLoopBackOff", exit_code=code)
    crashed = replace(crashed, finished=build.seconds(lived))
    seen = InferenceSeen([group], [build.pod(0, attempt=None, group=name), crashed])
    plan = plan_inference(build.inference(), seen, build.settings, build.seconds(lived))
    assert [d.uid for d in plan.delete if d.kind == "Pod"] == ([crashed.uid] if remade else [])


def test_a_crash_loop_is_told_until_its_group_is_ready_or_the_manifest_is_another(build):
    name = "tiny-0a1b2-abc123-g0"
    group = GroupSet("StatefulSet", name, "set-1", 1, "abc123", 1, "s1-None", build.start)
    pod = replace(build.pod(0, attempt=None, group=name), name=f"{name}-0")
    ended = {"exit_code": 1, "exit_message": "no such option", "finished": build.seconds(5), "container_restarts": 1}
    held_back = replace(pod, waiting="CrashLoopBackOff", **ended)
    inference = build.inference(parallelism={"pipeline": 1})
    told = []
    # It is held back, runs again, is made anew, and is ready.
    for pods in ([held_back], [replace(pod, **ended)], [], [pod], [replace(pod, ready_since=build.seconds(90))]):
        plan = plan_inference(inference, InferenceSeen([group], pods), build.settings, build.seconds(120))
        degraded = condition(plan.status, "Degraded")
        told += events_between(inference.status.conditions, [Condition.model_validate(degraded)])
        if not (pods and pods[0].ready_since):
            assert (degraded["reason"], plan.status["state"]) == ("CrashLoopBackOff", "CrashLoopBackOff")
            assert degraded["message"] == f"pod {name}-0 exited with code 1: no such option"
            edited = replace(inference, generation=2, status=read_status(ArcticInferenceStatus, plan.status))
        inference = replace(inference, status=read_status(ArcticInferenceStatus, plan.status))
    assert degraded["status"] == "False"
    assert [event.reason for event in told] == ["CrashLoopBackOff", "Recovered"]
    plan = plan_inference(edited, InferenceSeen([group], [pod]), build.settings, build.seconds(120))
    assert condition(plan.status, "Degraded")["status"] == "False"


def beside(build, metadata=None, **nim):
    """Return the plan for a NIM's pod whose sidecar runs and whose other container is as told."""
    group = GroupSet(
        "StatefulSet",
        "tiny-0a1b2-abc123-g0",
        "uid-g0",
        1,
        "abc123",
        size=1,
        specification="s1-nim:1",
        created=build.start,
    )
    pod = build.pod_of(
        {
            "metadata": {
                "name": "tiny-0",
                "uid": "uid-0",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {Label.GROUP: group.name},
                **(metadata or {}),
            },
            "status": {
                "phase": "Running",
                "initContainerStatuses": [{"name": "worker", "state": {"running": {}}}],
                "containerStatuses": [{"name": "nim", **nim}],
            },
        }
    )
    engine = {"name": "nim", "image": "nim:1"}
    inference = build.inference(engine=engine, model={"inImage": True}, parallelism={})
    return plan_inference(inference, InferenceSeen([group], [pod]), build.settings, build.seconds(500))


EXITED = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": "loading\nout of memory\n"}}


@pytest.mark.parametrize(
    ("nim", "reason", "message"),
    [
        (
            {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}},
            "ImagePullBackOff",
            "pod tiny-0: container nim: Back-off pulling image",
        ),
        (
            {"state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "ngc" not found'}}},
            "CreateContainerConfigError",
            'pod tiny-0: container nim: secret "ngc" not found',
        ),
        (
            {"state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}, "lastState": EXITED},
            "CrashLoopBackOff",
            "pod tiny-0: container nim: back-off 40s; container nim exited with code 137: out of memory",
        ),
        (
            {"state": {"running": {}}, "lastState": EXITED},
            "OOMKilled",
            "pod tiny-0: container nim exited with code 137: out of memory",
        ),
    ],
)
def test_the_trouble_of_a_container_beside_the_worker_is_told_and_left_to_the_kubelet(build, nim, reason, message):
    plan = beside(build, **nim)
    degraded = condition(plan.status, "Degraded")
    assert (degraded["status"], degraded["reason"], degraded["message"]) == ("True", reason, message)
    assert plan.status["state"] == reason
    assert plan.delete == ()


def test_a_container_that_ends_with_its_pod_is_no_trouble(build):
    deleted = {"deletionTimestamp": "2026-01-01T00:05:00Z", "deletionGracePeriodSeconds": 70}
    assert beside(build, deleted, state=EXITED).status["state"] == "Starting"


@pytest.mark.parametrize(
    "nim",
    [
        {"state": {"waiting": {"reason": "PodInitializing"}}},
        {"state": {"running": {}}},
        {"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
    ],
)
def test_a_container_beside_the_worker_may_start_and_end_well(build, nim):
    status = beside(build, **nim).status
    assert (status["state"], condition(status, "Degraded")["status"]) == ("Starting", "False")


@pytest.mark.parametrize(("label", "name"), [("tiny-0a1b2-abc123-g0", "g1"), ("foo", "g0"), (f"tiny-g{10**24}", "g0")])
def test_a_name_is_not_used_again_while_a_pod_has_it(build, label, name):
    stuck = build.pod(0, attempt=None, group=label, delete_requested=build.start)
    plan = plan_inference(build.inference(), InferenceSeen(pods=[stuck]), build.settings, build.seconds(500))
    assert [made["metadata"]["name"].rpartition("-")[2] for made in plan.create] == [name]


def test_a_service_that_was_ready_once_is_not_late_ever_after(build):
    cluster = Cluster(build, build.inference(startDeadline="10m"))
    cluster.run(30)
    (name,) = cluster.groups
    cluster.broken = {name}
    cluster.pods = {key: replace(pod, ready_since=None) for key, pod in cluster.pods.items()}
    cluster.run(700, step=30)
    assert condition(cluster.status, "Ready")["status"] == "False"
    assert condition(cluster.status, "Degraded")["status"] == "False"


def test_a_service_that_is_not_ready_in_time_is_late(build):
    cluster = Cluster(build, build.inference(startDeadline="10m"))
    cluster.reconcile()
    cluster.broken = set(cluster.groups)
    cluster.run(590, step=10)
    assert condition(cluster.status, "Degraded")["status"] == "False"
    cluster.run(10)
    assert condition(cluster.status, "Degraded")["reason"] == "StartDeadlineExceeded"


def test_what_stood_beside_a_group_that_is_gone_is_deleted(build):
    labels = {Label.GROUP.value: "tiny-0a1b2-abc123-g0"}
    service = {"kind": "Service", "metadata": {"name": "x", "namespace": "team", "uid": "service-1", "labels": labels}}
    plan = plan_inference(build.inference(), InferenceSeen(others=[service]), build.settings, build.start)
    assert [(d.kind, d.uid) for d in plan.delete] == [("Service", "service-1")]


def test_what_stands_beside_a_group_that_could_not_be_made_stays_for_the_next_try(build):
    """Its StatefulSet was refused, as by a quota, when its Service was there."""
    plan = plan_inference(build.inference(), InferenceSeen(), build.settings, build.start)
    (name,) = (made["metadata"]["name"] for made in plan.create)
    beside = [child for child in plan.apply if child["metadata"]["labels"].get(Label.GROUP) == name]
    there = [child | {"metadata": child["metadata"] | {"uid": "u"}} for child in beside]
    again = plan_inference(build.inference(), InferenceSeen(others=there), build.settings, build.start)
    assert [made["metadata"]["name"] for made in again.create] == [name]
    assert beside
    assert again.delete == ()


def test_names_of_groups_leave_room_for_what_the_stateful_set_appends(build):
    identity = replace(build.inference().identity, name="n" * 40)
    plan = plan_inference(replace(build.inference(), identity=identity), InferenceSeen(), build.settings, build.start)
    # A LeaderWorkerSet's second StatefulSet appends "-0", both a label's value of up to eleven more.
    assert len(plan.create[0]["metadata"]["name"]) <= 63 - 11 - 2


def test_a_group_that_loads_says_how_far_it_is(build):
    cluster = Cluster(build, build.inference())
    cluster.reconcile()
    told = condition(cluster.reconcile().status, "Progressing")["message"]
    assert told == "the leader has 40% of its weights in memory"
    cluster.run(30)
    assert condition(cluster.reconcile().status, "Progressing")["message"] == ""


def test_figures_are_those_of_all_groups_together(build):
    cluster = Cluster(build, build.inference(**fields(2, 1, 0)))
    cluster.run(30)
    cluster.live = lambda name: Live(
        InferenceObservation("", Phase.RUNNING, "", None, tokens_per_second=50.4, waiting=3, kv_cache_utilization=0.5),
        cluster.now,
        connected=True,
    )
    status = cluster.reconcile().status
    assert (status["tokensPerSecond"], status["queued"], status["kvCacheUtilization"]) == (101, 6, "50%")


def test_groups_that_run_stay_what_they_are_when_others_are_to_be_made(build):
    kinds, images = ("StatefulSet", "LeaderWorkerSet", "StatefulSet"), ("one", "two", "three")
    cluster = Cluster(build, build.inference(**fields(2, 1, 0)))
    before = {}
    for generation, (kind, image) in enumerate(zip(kinds, images, strict=True), 1):
        cluster.settings = build.lws_settings.model_copy(update={"inference_groups": kind})
        cluster.run(60)
        assert before in ({}, cluster.groups), "another kind replaces nothing"
        cluster.edit(build, generation, **fields(2, 1, 0, image))
        cluster.run(200)
        assert {group.kind for group in cluster.groups.values()} == {kind}
        assert cluster.status["state"] == "Ready"
        before = dict(cluster.groups)
    assert len(cluster.made) == len(set(cluster.made)) == 6


@given(
    replicas=st.integers(1, 3),
    surge=st.integers(0, 2),
    unavailable=st.integers(0, 2),
    kinds=st.lists(st.sampled_from(["StatefulSet", "LeaderWorkerSet"]), min_size=30, max_size=30),
)
@settings(max_examples=30)
def test_a_rollout_between_kinds_keeps_its_bounds(build, replicas, surge, unavailable, kinds):
    surge = max(surge, int(unavailable == 0))
    cluster = Cluster(build, build.inference(**fields(replicas, surge, unavailable)))
    cluster.run(30)
    cluster.edit(build, 2, **fields(replicas, surge, unavailable, "two"))
    cluster.most, least = 0, []
    for kind in kinds:
        cluster.settings = build.lws_settings.model_copy(update={"inference_groups": kind})
        cluster.run(8, watch=lambda it: least.append(len(it.serving)))
    assert cluster.most <= replicas + surge
    assert min(least) >= replicas - unavailable
    assert cluster.status["state"] == "Ready"


NAME = "tiny-0a1b2-abc123-g0"


def worker(build, group=NAME, owner=f"{NAME}-0", **fields):
    """A pod that a LeaderWorkerSet's second StatefulSet has made."""
    return build.pod(1, attempt=None, group=group, owner=Owner("StatefulSet", owner, f"uid-{owner}"), **fields)


def left_behind(build, pods, groups=(), settings=None):
    plan = plan_inference(build.inference(), InferenceSeen(groups, pods), settings or build.lws_settings, build.start)
    return [(d.kind, d.name, d.uid) for d in plan.delete], plan.needs_fresh


def test_workers_end_with_their_leader_worker_set_though_the_leaders_node_is_unreachable(build):
    gone = left_behind(build, [worker(build)])
    assert gone == ([("StatefulSet", f"{NAME}-0", f"uid-{NAME}-0")], True)


def test_workers_that_their_own_controllers_end_are_left_to_them(build):
    group = GroupSet(LEADER_WORKER_SET, NAME, "set-1", 1, "abc123", 2, "s1", build.start)
    assert left_behind(build, [worker(build)], [group])[0] == []
    assert left_behind(build, [worker(build, delete_requested=build.start)])[0] == []
    assert left_behind(build, [worker(build, owner=NAME)])[0] == []
    assert left_behind(build, [worker(build)], settings=build.settings)[0] == [], "it may be there, unseen"


def test_a_leader_worker_sets_pods_are_those_that_its_size_says(build):
    manifest = plan_inference(build.inference(), InferenceSeen(), build.lws_settings, build.start).create[0]
    stamps = {"uid": "set-1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    group = build.group_set_of(manifest | {"metadata": manifest["metadata"] | stamps})
    assert (group.kind, group.size, group.uid) == (LEADER_WORKER_SET, 2, "set-1")
    assert group.makers == (group.name, f"{group.name}-0")
    assert replace(group, size=1).makers == (group.name,)
    assert replace(group, kind="StatefulSet").makers == ()


def test_a_service_that_scales_up_says_so_and_is_available_while_its_first_group_serves(build):
    cluster = Cluster(build, build.inference(**fields(1, 1, 0)))
    cluster.run(30)
    cluster.go_back(build, 2, **fields(2, 1, 0))
    cluster.reconcile()
    assert (cluster.status["state"], cluster.status["readyReplicas"]) == ("Scaling", 1)
    available, ready = (condition(cluster.status, kind) for kind in ("Available", "Ready"))
    assert (available["status"], available["reason"]) == ("True", "SomeGroupsReady")
    assert available["message"] == "1 of 2 groups are ready"
    assert (ready["status"], ready["reason"]) == ("False", "Scaling")
    cluster.run(30)
    assert (cluster.status["state"], condition(cluster.status, "Available")["reason"]) == ("Ready", "EnoughGroupsReady")


def test_a_claim_in_another_zone_is_told_in_the_schedulers_words(build):
    words = "0/8 nodes are available: 8 node(s) had volume node affinity conflict."
    cluster = Cluster(build, build.inference())
    cluster.reconcile()
    for key, pod in cluster.pods.items():
        cluster.pods[key] = replace(pod, phase="Pending", node="", unschedulable=words)
    cluster.reconcile()
    degraded = condition(cluster.status, "Degraded")
    assert (cluster.status["state"], degraded["reason"]) == ("Unschedulable", "Unschedulable")
    assert words in degraded["message"]


def with_canary(weight, replicas, surge, unavailable, image="one"):
    asked = fields(replicas, surge, unavailable, image)
    asked["rollout"]["canary"] = {"weight": weight}
    return asked


@pytest.mark.parametrize("weight", ["20%", "100%"])
def test_a_canary_stays_one_while_the_stable_group_moves_to_another_node(build, weight):
    cluster = Cluster(build, build.inference(**with_canary(weight, 1, 1, 0)))
    cluster.run(30)
    stable = cluster.status["revision"]
    cluster.edit(build, 2, **with_canary(weight, 1, 1, 0, "two"))
    cluster.run(60)
    [old] = [name for name, group in cluster.groups.items() if group.revision == stable]
    node = cluster.pods[old, 0].node
    cluster.nodes[node] = replace(cluster.nodes[node], to_be_emptied=True)
    for _ in range(120):
        cluster.run(1)
        assert (cluster.status["state"], cluster.status["stableRevision"]) == ("Canary", stable)
    assert old not in cluster.groups
    assert {group.revision for group in cluster.groups.values()} == {stable, cluster.status["revision"]}


def tracks(cluster):
    """Groups by which requests they get."""
    found = {"on": set(), "canary": set()}
    for name in cluster.serving:
        found[cluster.pods[name, 0].routing].add(name)
    return found["on"], found["canary"]


def share_of(cluster):
    """What the gateway is told."""
    (config,) = [manifest for manifest in cluster.reconcile().apply if manifest["kind"] == "ConfigMap"]
    return int(config["data"]["canary"])


@given(
    replicas=st.integers(1, 4),
    surge=st.integers(1, 2),
    unavailable=st.integers(0, 1),
    weight=st.sampled_from(["0%", "10%", "50%", "100%"]),
    end=st.sampled_from(["promote", "revert", "back", "another"]),
    early=st.integers(0, 60),
    busy=st.booleans(),
)
@example(replicas=2, surge=1, unavailable=1, weight="100%", end="revert", early=0, busy=False)
@settings(max_examples=20)
def test_a_canary_begins_holds_and_ends_within_the_bounds_of_a_rollout(
    build, replicas, surge, unavailable, weight, end, early, busy
):
    cluster = Cluster(build, build.inference(**with_canary(weight, replicas, surge, unavailable)))
    cluster.run(40, step=2)
    first = cluster.status["revision"]
    assert tracks(cluster) == (set(cluster.groups), set()), "a first revision is no canary"
    if busy:
        cluster.busy.update(cluster.groups)

    def enough(it):
        on, canary = tracks(it)
        assert len(on) + len(canary) >= replicas - unavailable
        assert on, "the stable revision serves all the while"
        assert len(it.groups) <= replicas + surge

    cluster.edit(build, 2, **with_canary(weight, replicas, surge, unavailable, "two"))
    cluster.run(early, enough, step=2)
    cluster.edit(build, 3, **with_canary(weight, replicas, surge, unavailable, "three"))
    cluster.run(160, enough, step=2)
    on, canary = tracks(cluster)
    assert {cluster.groups[name].revision for name in on} == {first}
    assert {cluster.groups[name].revision for name in canary} == {cluster.status["revision"]}
    assert canary
    assert (cluster.status["state"], share_of(cluster)) == ("Canary", int(weight[:-1]))
    assert cluster.status["stableRevision"] == first

    if end == "promote":
        cluster.edit(build, 4, **fields(replicas, surge, unavailable, "three"))
    elif end == "revert":
        cluster.go_back(build, 4, **with_canary(weight, replicas, surge, unavailable))
    elif end == "back":
        back = with_canary(weight, replicas, surge, unavailable, "three")
        back["rollout"]["toRevision"] = first
        cluster.edit(build, 4, **back)
    else:
        cluster.edit(build, 4, **fields(replicas, surge, unavailable, "four"))
    assert share_of(cluster) == 0
    cluster.run(200, lambda it: assert_bounds(it, replicas - unavailable, replicas + surge), step=2)
    on, canary = tracks(cluster)
    assert (len(on), canary) == (replicas, set())
    assert {group.revision for group in cluster.groups.values()} == {cluster.status["revision"]}
    assert (cluster.status["revision"] == first) == (end in ("revert", "back"))
    assert (cluster.status["state"], cluster.status["stableRevision"]) == ("Ready", cluster.status["revision"])


def test_while_there_is_a_canary_a_stable_group_that_is_lost_is_made_again_as_it_was(build):
    cluster = Cluster(build, build.inference(**with_canary("20%", 2, 1, 0)))
    cluster.run(30)
    before = templates(cluster)
    cluster.edit(build, 2, **with_canary("20%", 2, 1, 0, "two"))
    cluster.run(60)
    (stable,), (canary,) = tracks(cluster)
    node = cluster.pods[stable, 0].node
    cluster.nodes[node] = Node(node, False, cluster.now, False)
    cluster.run(80)
    (again,), canaries = tracks(cluster)
    assert again != stable
    assert canaries == {canary}
    assert worlds_apart(templates(cluster)[again]) in {worlds_apart(text) for text in before.values()}


def test_a_canary_of_a_service_whose_stable_revision_was_not_recorded_moves_nothing(build):
    cluster = Cluster(build, build.inference(**with_canary("20%", 1, 1, 0)))
    cluster.run(30)
    before = set(cluster.groups)
    cluster.history.clear()
    cluster.edit(build, 2, **with_canary("20%", 1, 1, 0, "two"))
    cluster.run(30)
    assert set(cluster.groups) == before
    assert condition(cluster.status, "Degraded")["reason"] == "NoStableRevision"


def test_what_has_never_served_is_no_stable_revision_to_a_canary(build):
    cluster = Cluster(build, build.inference(**with_canary("10%", 2, 1, 0)))
    cluster.reconcile()
    cluster.broken.update(cluster.groups)
    cluster.run(30)
    assert cluster.status["state"] == "Starting"
    cluster.edit(build, 2, **with_canary("10%", 2, 1, 0, "two"))
    cluster.run(60)
    assert {group.revision for group in cluster.groups.values()} == {cluster.status["revision"]}
    assert (cluster.status["state"], len(tracks(cluster)[0])) == ("Ready", 2)


@pytest.mark.parametrize(
    "asked",
    [fields(1, 1, 0), with_canary("20%", 1, 1, 0, "two"), {"replicas": 0}],
    ids=["serving", "a canary", "scaled to zero"],
)
def test_without_a_gateway_that_is_what_is_told_whatever_groups_there_are(build, asked):
    cluster = Cluster(build, build.inference(**fields(1, 1, 0)))
    cluster.run(30)
    stable = cluster.status["revision"]
    cluster.edit(build, 2, **{**fields(1, 1, 0), **asked})
    cluster.run(60)
    before = {name: cluster.status[name] for name in ("state", "stableRevision")}
    cluster.gateway_down = GatewayDown(cluster.now - timedelta(minutes=1), "exceeded quota: pods")
    cluster.run(10)
    told = {kind: condition(cluster.status, kind) for kind in ("Available", "Degraded")}
    assert (cluster.status["state"], told["Degraded"]["reason"]) == ("NoGateway", "NoGateway")
    assert told["Available"]["status"] == "False"
    cluster.gateway_down = None
    cluster.run(10)
    assert before == {name: cluster.status[name] for name in before}
    assert stable == before["stableRevision"] or before["state"] == "Ready"


def test_a_canary_is_of_the_revision_that_was_rolled_out_while_nobody_might_use_the_service(build):
    cluster = Cluster(build, build.inference(**fields(1, 1, 0)))
    cluster.run(30)
    cluster.access = access_of("people", None)
    cluster.edit(build, 2, **fields(1, 1, 0, "two"))
    cluster.run(60)
    second = cluster.status["revision"]
    assert cluster.status["state"] == "NoKeys"
    cluster.edit(build, 3, **with_canary("20%", 1, 1, 0, "three"))
    cluster.run(60)
    assert cluster.status["stableRevision"] == second
    assert {group.revision for group in cluster.groups.values()} == {second, cluster.status["revision"]}
