import pytest

from arctic_api.common import Condition
from arctic_operator.observed import pod_of
from arctic_operator.plan.conditions import Conditions, events_between, trouble_of


def made(build, seconds, before=None, **statuses):
    conditions = Conditions(before, 1, build.seconds(seconds))
    for kind, status in statuses.items():
        conditions.set(kind, status, "Because" if status else "Otherwise")
    return conditions.all()


def test_the_time_of_a_transition_is_kept_while_the_status_stays(build):
    first = made(build, 0, Ready=False)
    same = made(build, 60, first, Ready=False)
    turned = made(build, 90, same, Ready=True)
    assert same[0].last_transition_time == first[0].last_transition_time == "2026-01-01T00:00:00Z"
    assert turned[0].last_transition_time == "2026-01-01T00:01:30Z"


def test_events_tell_what_became_true_and_what_is_over_once(build):
    before = made(build, 0, Degraded=False, Ready=False, PodsScheduled=True)
    after = made(build, 1, before, Degraded=True, Ready=False, PodsScheduled=False)
    assert [(event.type, event.reason) for event in events_between(before, after)] == [("Warning", "Because")]
    assert events_between(after, after) == []
    assert [event.reason for event in events_between(after, before)] == ["Recovered"], "the cluster tells of its pods"
    ready = made(build, 1, before, Degraded=False, CheckpointReady=True)
    assert [(event.type, event.reason) for event in events_between(before, ready)] == [("Normal", "Because")]
    assert events_between(None, made(build, 0, Degraded=False)) == []


def test_trouble_is_told_once_though_the_progress_is_named_after_it(build):
    before = made(build, 0, Ready=True, Progressing=True, Degraded=False)
    conditions = Conditions(before, 1, build.seconds(1))
    conditions.set("Ready", False, "Unschedulable", "0 of 1")
    conditions.set("Progressing", True, "Unschedulable")
    conditions.set("Degraded", True, "Unschedulable", "no room")
    told = [(event.type, event.reason, event.message) for event in events_between(before, conditions.all())]
    assert told == [("Normal", "NotReady", "0 of 1"), ("Warning", "Unschedulable", "no room")]


def test_messages_are_cut_to_what_a_condition_holds():
    condition = Conditions(None, 1, __import__("datetime").datetime(2026, 1, 1))
    condition.set("Degraded", True, "Because", "x" * 100_000)
    assert isinstance(condition.all()[0], Condition)


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("OutOfephemeral-storage", "OutOfephemeral_storage"),
        ("OutOfnvidia.com/gpu", "OutOfnvidia_com_gpu"),
        ("seccomp killed", "seccomp_killed"),
        ("Waiting: ", "Waiting:_"),
        ("x" * 127 + ":y", "x" * 127),
        ("504 Gateway", "Gateway"),
        ("zu spät", "zu_sp_t"),
        ("?", "Unknown"),
    ],
)
def test_a_reason_of_others_that_no_condition_can_have_is_written_as_one(build, told, kept):
    """A kubelet's own words among them, of a pod for which its node has no room."""
    conditions = Conditions(None, 1, build.start)
    conditions.set("Degraded", True, told)
    assert conditions.all()[0].reason == kept


def raw_pod(**status):
    metadata = {"name": "p", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {}}
    return {"kind": "Pod", "metadata": metadata, "spec": {"nodeName": "n0"}, "status": {"phase": "Pending"} | status}


def waiting(reason, message=""):
    return {"containerStatuses": [{"name": "worker", "state": {"waiting": {"reason": reason, "message": message}}}]}


def test_children_give_the_reason():
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no room"}
    killed = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-01-01T00:00:05Z"}
    cases = {
        "ImagePullBackOff": waiting("ImagePullBackOff", "no such image"),
        "CreateContainerConfigError": waiting("CreateContainerConfigError", "secret not found"),
        "Unschedulable": {"conditions": [unschedulable]},
        "OOMKilled": {
            "containerStatuses": [{"name": "worker", "state": {"waiting": {}}, "lastState": {"terminated": killed}}]
        },
        "Evicted": {"phase": "Failed", "reason": "Evicted", "message": "the node was low on memory"},
    }
    for reason, status in cases.items():
        assert trouble_of([pod_of(raw_pod(**status))], "").reason == reason
    assert trouble_of([pod_of(raw_pod(**waiting("ContainerCreating")))], "") is None


def test_only_the_workers_container_says_how_a_worker_ended():
    killed = {"name": "proxy", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}
    worker = {"name": "worker", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    for statuses in ([killed, worker], [worker, killed]):
        pod = pod_of(raw_pod(phase="Failed", containerStatuses=statuses))
        assert (pod.exit_code, pod.exit_reason) == (0, "Completed")
    assert trouble_of([pod_of(raw_pod(containerStatuses=[killed]))], "") is None


def test_a_deletion_was_requested_the_grace_period_before_its_deadline(build):
    manifest = raw_pod()
    manifest["metadata"] |= {"deletionTimestamp": "2026-01-01T00:01:00Z", "deletionGracePeriodSeconds": 60}
    assert pod_of(manifest).delete_requested == build.start


def test_no_condition_has_the_json_that_a_worker_leaves(build):
    said = build.report("failed", reason="RanksLost", message="rank 1 was killed by SIGKILL")
    killed = {"exitCode": 137, "reason": "OOMKilled", "message": said, "finishedAt": "2026-01-01T00:00:05Z"}
    manifest = raw_pod(containerStatuses=[{"name": "worker", "state": {"terminated": killed}}])
    limits = {"resources": {"limits": {"memory": "2Gi"}}}
    manifest["spec"] |= {"containers": [{"name": "proxy"}, {"name": "worker"} | limits]}
    trouble = trouble_of([pod_of(manifest)], "raise it")
    words = "needed more memory than its limit of 2Gi (rank 1 was killed by SIGKILL): raise it"
    assert (trouble.reason, trouble.message) == ("OOMKilled", f"container worker of pod p {words}")
