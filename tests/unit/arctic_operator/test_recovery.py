"""Seconds from a fault to training, or serving, again."""

import pytest

from arctic_operator.observed import InferenceSeen, Node, TrainingSeen
from arctic_operator.plan.recovery import Fault, Recovery, track


def attempts(reason):
    return [{"number": 1, "reason": reason, "counted": False, "completionTime": "2026-01-01T00:00:40Z"}]


@pytest.mark.parametrize(
    ("reason", "pod", "n1", "kind", "began"),
    [
        ("NodeLost", {}, (False, 25), "NodeLost", 25),
        ("PodDeleted", {"delete_requested": 30}, (True, 0), "PodDeleted", 30),
        ("TerminationByKubelet", {"disrupted": 31, "delete_requested": 30}, (True, 0), "Disrupted", 31),
        ("LossNotFinite", {"finished": 32, "exit_code": 1, "phase": "Failed"}, (True, 0), "WorkerFailed", 32),
        ("PodLost", {}, (True, 0), "PodLost", 40),
    ],
)
def test_a_training_is_broken_from_what_the_cluster_knows_until_it_runs_again(build, reason, pod, n1, kind, began):
    times = ("delete_requested", "disrupted", "finished")
    fields = {name: build.seconds(value) if name in times else value for name, value in pod.items()}
    nodes = {"n0": Node("n0", True, build.start, False), "n1": Node("n1", n1[0], build.seconds(n1[1]), False)}
    seen = TrainingSeen(pods=[build.pod(0), build.pod(1, **fields)], nodes=nodes)
    ended = {"state": "Restarting", "attempt": 1, "attempts": attempts(reason)}
    fault, over = track(None, build.training({"attempt": 1}), seen, ended, build.seconds(40))
    assert (fault, over) == (Fault(kind, build.seconds(began), build.seconds(40)), None)

    after = build.training(ended)
    made = {"created": build.seconds(50), "started": build.seconds(53)}
    seen = TrainingSeen(pods=[build.pod(index, attempt=2, **made) for index in range(2)], nodes=nodes)
    starting = ended | {"state": "Starting", "attempt": 2}
    assert track(fault, after, seen, starting, build.seconds(60)) == (fault, None)
    _, over = track(fault, after, seen, starting | {"state": "Running"}, build.seconds(70))
    parts = {"noticing": 40 - began, "waiting": 10, "scheduling": 3, "loading": 17}
    assert over == Recovery(kind, parts)


@pytest.mark.parametrize("state", ["Suspending", "Failed", "Succeeded"])
def test_what_shall_not_run_again_has_nothing_to_recover_from(build, state):
    fault = Fault("NodeLost", build.start, build.start)
    status = {"state": state, "attempt": 1, "attempts": attempts("NodeLost")}
    assert track(fault, build.training({"attempt": 1}), TrainingSeen(), status, build.start) == (None, None)


def service(build, ready):
    when = "2026-01-01T00:00:00Z"
    condition = {"type": "Ready", "status": str(ready), "reason": "Any", "message": "", "lastTransitionTime": when}
    return build.inference({"observedGeneration": 1, "conditions": [condition]})


def test_a_service_is_broken_until_it_is_ready_with_the_pods_that_it_has_then(build):
    dead = build.pod(0, attempt=None, finished=build.seconds(9), exit_code=137, exit_reason="OOMKilled")
    seen = InferenceSeen(pods=[dead, build.pod(1, attempt=None)])
    fault, over = track(None, service(build, True), seen, {"state": "Starting"}, build.seconds(10))
    assert (fault, over) == (Fault("OOMKilled", build.seconds(9), build.seconds(10)), None)
    assert track(fault, service(build, False), seen, {"state": "Starting"}, build.seconds(15)) == (fault, None)
    same = [build.pod(index, attempt=None, ready_since=build.seconds(20)) for index in range(2)]
    _, over = track(fault, service(build, False), InferenceSeen(pods=same), {"state": "Ready"}, build.seconds(30))
    assert over == Recovery("OOMKilled", {"noticing": 1, "waiting": 0, "scheduling": 0, "loading": 20})


def test_a_service_that_is_edited_or_scaled_is_not_broken(build):
    before = service(build, True)
    seen = InferenceSeen(pods=[build.pod(0, attempt=None, delete_requested=build.start)])
    edited = build.inference(before.status.wire(), generation=2)
    assert track(None, edited, seen, {"state": "RollingOut"}, build.start) == (None, None)
    whole = InferenceSeen(pods=[build.pod(0, attempt=None)])
    assert track(None, before, whole, {"state": "Scaling"}, build.start) == (None, None)
