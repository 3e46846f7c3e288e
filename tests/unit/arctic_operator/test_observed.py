"""From objects as the API server shows them to what plans need."""

import pytest

from arctic_api.world import Label
from arctic_operator.observed import (
    COMPLETION_INDEX,
    POD_INDEX_LABEL,
    SIZE_ANNOTATION,
    Owner,
    attempt_of,
    group_set_of,
    is_news,
    job_of,
    node_of,
    pod_of,
    revision_seen_of,
)


def raw_pod(**metadata):
    made = {"name": "tiny-g0-0-1", "uid": "pod-1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"kind": "Pod", "metadata": made | metadata}


def test_a_leader_worker_sets_worker_has_the_rank_of_its_ordinal_and_another_owner_than_its_group():
    labels = {
        "arctic.dev/group": "tiny-g0",
        "apps.kubernetes.io/pod-index": "1",
        "leaderworkerset.sigs.k8s.io/name": "tiny-g0",
        "leaderworkerset.sigs.k8s.io/worker-index": "1",
    }
    owner = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "tiny-g0-0", "uid": "set-2", "controller": True}
    pod = pod_of(raw_pod(labels=labels, ownerReferences=[{"kind": "Other", "name": "x", "uid": "y"}, owner]))
    assert (pod.index, pod.group, pod.owner) == (1, "tiny-g0", Owner("StatefulSet", "tiny-g0-0", "set-2"))


def test_a_pod_that_nothing_controls_has_no_owner():
    assert pod_of(raw_pod()).owner is None


@pytest.mark.parametrize(
    ("policy", "worker", "others", "phase", "seen"),
    [
        ("Never", {"terminated": {"exitCode": 0}}, "Running", "Running", ("Succeeded", True)),
        ("Never", {"terminated": {"exitCode": 137}}, "Running", "Running", ("Failed", True)),
        ("Never", {"terminated": {"exitCode": 0}}, "Error", "Failed", ("Succeeded", False)),
        ("Never", {"running": {}}, "Running", "Running", ("Running", False)),
        ("Always", {"terminated": {"exitCode": 137}}, "Running", "Running", ("Running", False)),
        # The kubelet writes the phase some moments after the end of the last container.
        ("Never", {"terminated": {"exitCode": 0}}, "Error", "Running", ("Succeeded", False)),
    ],
)
def test_the_end_of_the_workers_container_decides_whatever_else_is_in_the_pod(policy, worker, others, phase, seen):
    proxy = {"running": {}} if others == "Running" else {"terminated": {"exitCode": 1}}
    statuses = [{"name": "proxy", "state": proxy}, {"name": "worker", "state": worker}]
    pod = raw_pod() | {"spec": {"restartPolicy": policy}, "status": {"phase": phase, "containerStatuses": statuses}}
    assert (pod_of(pod).phase, pod_of(pod).lingers) == seen


def test_only_what_is_read_of_a_job_or_a_pod_is_news():
    labels = {"arctic.dev/attempt": "1"}
    job = raw_pod(labels=labels) | {"kind": "Job", "spec": {}, "status": {"active": 1}}
    assert not is_news(job, job | {"status": {"active": 2, "ready": 1}})
    ended = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    assert is_news(job, job | {"status": {"active": 2, "conditions": [ended]}})
    failing = {"type": "FailureTarget", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    assert is_news(job, job | {"status": {"active": 2, "conditions": [failing]}})
    assert is_news(job, job | {"spec": {"suspend": True}})
    pod = raw_pod()
    assert not is_news(pod, pod | {"status": {"hostIP": "10.0.0.1"}})
    assert is_news(pod, pod | {"status": {"phase": "Running"}})
    assert is_news(pod, raw_pod(annotations={"arctic.dev/read": "2"})), "a gateway's pods are told by annotations"
    service = raw_pod() | {"kind": "Service"}
    assert is_news(service, service | {"spec": {"ports": []}})


def raw_node(*taints, metadata=None, **spec):
    given = {"taints": [{"key": key, "effect": "NoSchedule"} | more for key, more in taints]} if taints else {}
    return {"kind": "Node", "metadata": {"name": "n0"} | (metadata or {}), "spec": given | spec}


def test_a_node_that_only_says_that_it_lives_tells_nothing():
    beat = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z", "lastHeartbeatTime": "a"}
    node = raw_node() | {"status": {"conditions": [beat]}}
    assert not is_news(node, node | {"status": {"conditions": [beat | {"lastHeartbeatTime": "b"}], "images": []}})
    assert is_news(node, node | {"status": {"conditions": [beat | {"status": "Unknown"}]}})
    assert is_news(node, node | {"spec": {"unschedulable": True}})


@pytest.mark.parametrize(
    "node",
    [
        raw_node(unschedulable=True),
        raw_node(("karpenter.sh/disrupted", {})),
        raw_node(("karpenter.sh/disruption", {"value": "disrupting"})),
        raw_node(("ToBeDeletedByClusterAutoscaler", {"value": "1767225600"})),
        raw_node(("cloud.google.com/impending-node-termination", {})),
        raw_node(("nvidia.com/gpu", {}), ("karpenter.sh/disrupted", {})),
        raw_node(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}),
    ],
)
def test_a_node_is_to_be_emptied_whoever_says_so_and_how(node):
    """Autoscalers taint the nodes that they empty, and cordon none."""
    assert node_of(node).to_be_emptied


@pytest.mark.parametrize(
    "node",
    [
        raw_node(),
        raw_node(taints=None),
        raw_node(("nvidia.com/gpu", {"value": "present"})),
        raw_node(("DeletionCandidateOfClusterAutoscaler", {"effect": "PreferNoSchedule"})),
        raw_node(("node.kubernetes.io/not-ready", {"effect": "NoExecute"})),
    ],
)
def test_a_node_that_is_only_kept_for_some_or_silent_or_may_go_yet_is_not_to_be_emptied(node):
    assert not node_of(node).to_be_emptied


@pytest.mark.parametrize("edited", ["", "two", "-1", "nan", "1e999", "1e29"])
def test_a_number_that_somebody_has_edited_into_none_is_as_if_it_had_not_been_noted(edited):
    labels = {"arctic.dev/attempt": edited, "arctic.dev/revision": "r1"}
    notes = dict.fromkeys(("generation", "size", "gpu-hours-before", "draining-since"), edited)
    child = raw_pod(labels=labels, annotations={f"arctic.dev/{name}": value for name, value in notes.items()})
    job = job_of(child | {"kind": "Job", "spec": {}})
    assert (job.attempt, job.generation, job.gpu_hours_before) == (0, 0, 0.0)
    group = group_set_of(child | {"kind": "StatefulSet", "spec": {"replicas": 2}})
    assert (group.generation, group.size, group.draining_since) == (0, 2, None)
    assert (pod_of(child).attempt, attempt_of(raw_pod())) == (0, None)
    for place, name in (("labels", POD_INDEX_LABEL), ("annotations", COMPLETION_INDEX)):
        assert pod_of(raw_pod(**{place: {name: edited}})).index == 0
        assert pod_of(raw_pod(**{place: {name: "3"}})).index == 3


@pytest.mark.parametrize("labels", [{}, {Label.REVISION: "another"}])
def test_a_record_is_of_the_revision_that_it_was_made_for_whatever_its_labels_say(labels):
    record = raw_pod(name="tiny-0a1b2-c3d4e5", labels=labels)
    record |= {"kind": "ControllerRevision", "revision": 3, "data": {"spec": {}, "fields": []}}
    assert revision_seen_of(record).name == "c3d4e5"


def test_a_group_is_of_the_revision_and_size_that_it_was_made_with_whatever_is_noted_on_it():
    notes = {"labels": {Label.REVISION: "Bad_Value"}, "annotations": {SIZE_ANNOTATION: "1000"}}
    made = raw_pod(name="tiny-0a1b2-c3d4e5-g7", generation=1, **notes) | {
        "kind": "StatefulSet",
        "spec": {"replicas": 2},
    }
    group = group_set_of(made)
    assert (group.revision, group.size, group.scaled) == ("c3d4e5", 2, False)


@pytest.mark.parametrize(("label", "read"), [(None, "on"), ("canary", "canary"), ("off", "off"), ("none", "on")])
def test_a_leader_whose_routing_somebody_has_edited_gets_requests(label, read):
    assert pod_of(raw_pod(labels={Label.ROUTING: label} if label else {})).routing == read
