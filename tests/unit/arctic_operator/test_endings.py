from dataclasses import replace

import pytest

from arctic_operator.observed import Job, Node
from arctic_operator.plan.conditions import until_unreachable
from arctic_operator.plan.endings import judge

JOB = Job("tiny-a1", "job-1", 1, 1, "r1")
FAILED = replace(JOB, failed=True, reason="BackoffLimitExceeded")
COMPLETE = replace(JOB, complete=True)


def test_a_world_that_runs_has_not_ended(build):
    assert judge(build.training().spec, JOB, [build.pod(0), build.pod(1)], None, build.start) is None


def test_success_needs_the_job_complete_and_the_final_marker(build):
    spec = build.training().spec
    done = build.pod(0, phase="Succeeded", exit_code=0, exit_message=build.report(exportUri="file:///export"))
    peer = build.pod(1, phase="Succeeded", exit_code=0)
    assert judge(spec, JOB, [done, peer], None, build.start) is None
    assert judge(spec, COMPLETE, [done, peer], None, build.start).final == "Succeeded"


@pytest.mark.parametrize("message", ["", "Killed", '{"outcome": "interrupted"}', '{"outcome": "succeeded"}'])
def test_pods_that_exit_with_0_in_mid_run_are_a_lost_attempt_and_no_success(build, message):
    pods = [build.pod(i, phase="Succeeded", exit_code=0, exit_message=message) for i in range(2)]
    ending = judge(build.training().spec, COMPLETE, pods, None, build.start)
    assert ending.final is None
    assert ending.reason == "NoFinalCheckpoint"
    assert ending.counted


def test_a_complete_world_whose_first_pod_is_gone_is_lost_and_not_charged(build):
    peer = build.pod(1, phase="Succeeded", exit_code=0)
    ending = judge(build.training().spec, COMPLETE, [peer], None, build.start)
    assert (ending.reason, ending.counted, ending.final) == ("PodLost", False, None)


def test_without_an_export_the_final_checkpoint_is_the_marker(build):
    checkpoint = {"step": 5, "tokens": 9, "uri": "file:///c", "time": "2026-01-01T00:00:00Z"}
    spec = build.training(checkpoint={"volume": {"claimName": "store"}, "export": "none"}).spec
    done = build.pod(0, phase="Succeeded", exit_code=0, exit_message=build.report(checkpoint=checkpoint))
    assert judge(spec, COMPLETE, [done], None, build.start).final == "Succeeded"


def test_bad_input_is_never_tried_again_and_keeps_the_workers_sentence(build):
    report = build.report("refused", reason="UnknownColumn", message="books.jsonl has no column 'text'")
    pods = [build.pod(0, phase="Failed", exit_code=64, exit_message=report), build.pod(1, phase="Failed", exit_code=1)]
    ending = judge(build.training().spec, FAILED, pods, None, build.start)
    assert (ending.final, ending.reason) == ("Failed", "UnknownColumn")
    assert ending.message == "books.jsonl has no column 'text'"


@pytest.mark.parametrize(("outcome", "code", "told"), [("refused", 64, "BadInput"), ("failed", 1, "WorkerFailed")])
def test_a_reason_that_no_condition_can_have_is_not_taken_over(build, outcome, code, told):
    report = build.report(outcome, reason="bad input!", message="books.jsonl has no column 'text'")
    pods = [build.pod(0, phase="Failed", exit_code=code, exit_message=report)]
    ending = judge(build.training().spec, FAILED, pods, None, build.start)
    assert (ending.reason, ending.message) == (told, "books.jsonl has no column 'text'")


def test_a_crash_counts_and_names_its_reason(build):
    pods = [build.pod(0), build.pod(1, phase="Failed", exit_code=137, exit_reason="OOMKilled")]
    ending = judge(build.training().spec, JOB, pods, None, build.start)
    assert (ending.reason, ending.counted) == ("OOMKilled", True)


def test_an_interrupted_worker_does_not_count(build):
    pods = [build.pod(i, phase="Failed", exit_code=75, finished=build.seconds(5)) for i in range(2)]
    ending = judge(build.training().spec, FAILED, pods, None, build.start)
    assert (ending.reason, ending.counted, ending.final) == ("Interrupted", False, None)


def test_a_peers_crash_after_a_deletion_is_the_deletions_doing(build):
    gone = build.pod(0, delete_requested=build.seconds(1))
    peer = build.pod(1, phase="Failed", exit_code=1, finished=build.seconds(3))
    ending = judge(build.training().spec, JOB, [gone, peer], None, build.seconds(4))
    assert (ending.reason, ending.counted) == ("PodDeleted", False)


@pytest.mark.parametrize("code", [137, 143])
def test_a_worker_that_ends_in_the_second_of_its_deletion_is_not_charged(build, code):
    """It has just begun, and does not know yet how to end in order."""
    gone = build.pod(0, phase="Failed", exit_code=code, finished=build.seconds(1), delete_requested=build.seconds(1))
    ending = judge(build.training().spec, JOB, [gone, build.pod(1)], None, build.seconds(9))
    assert (ending.reason, ending.counted) == ("PodDeleted", False)
    crashed = replace(gone, exit_code=1)
    ending = judge(build.training().spec, JOB, [crashed, build.pod(1)], None, build.seconds(9))
    assert (ending.reason, ending.counted) == ("WorkerFailed", True)


def test_who_loses_a_peer_in_the_second_of_its_deletion_is_not_charged(build):
    report = build.report("failed", reason="PeerLost", message="rank 0 is gone")
    peer = build.pod(1, phase="Failed", exit_code=1, exit_message=report, finished=build.seconds(1))
    gone = build.pod(0, delete_requested=build.seconds(1))
    ending = judge(build.training().spec, JOB, [gone, peer], None, build.seconds(9))
    assert (ending.reason, ending.counted) == ("PodDeleted", False)
    crashed = build.pod(0, phase="Failed", exit_code=1, finished=build.seconds(1))
    ending = judge(build.training().spec, JOB, [crashed, peer], None, build.seconds(9))
    assert (ending.reason, ending.counted) == ("WorkerFailed", True)


@pytest.mark.parametrize("behind", [0, 1, 300])
def test_who_loses_a_peer_is_not_the_cause_however_far_its_nodes_clock_is_behind(build, behind):
    """Kubelets write when a worker ended, each by its own clock."""
    report = build.report("failed", reason="PeerLost", message="rank 0 is gone")
    peer = build.pod(1, phase="Failed", exit_code=1, exit_message=report, finished=build.seconds(400 - behind))
    spec, ended = build.training().spec, build.pod(0, phase="Failed", finished=build.seconds(399))
    crashed = replace(ended, exit_code=137, exit_reason="OOMKilled")
    ending = judge(spec, JOB, [crashed, peer], None, build.seconds(401))
    assert (ending.reason, ending.counted) == ("OOMKilled", True)
    preempted = replace(ended, exit_code=137, disrupted=build.seconds(399), disruption="PreemptionByScheduler")
    ending = judge(spec, JOB, [preempted, peer], None, build.seconds(401))
    assert (ending.reason, ending.counted) == ("PreemptionByScheduler", False)


def test_a_pod_that_goes_after_a_peer_was_lost_may_be_its_jobs_doing(build):
    report = build.report("failed", reason="RankHung", message="rank 0 does not answer")
    peer = build.pod(1, phase="Failed", exit_code=1, exit_message=report, finished=build.seconds(3))
    swept = build.pod(0, phase="Failed", exit_code=75, finished=build.seconds(5), delete_requested=build.seconds(4))
    ending = judge(build.training().spec, JOB, [swept, peer], None, build.seconds(6))
    assert (ending.reason, ending.counted) == ("RankHung", True)


def test_a_deletion_after_a_peers_crash_is_the_crashs_doing(build):
    crashed = build.pod(0, phase="Failed", exit_code=1, finished=build.seconds(1))
    swept = build.pod(1, delete_requested=build.seconds(2))
    ending = judge(build.training().spec, JOB, [crashed, swept], None, build.seconds(4))
    assert (ending.reason, ending.counted) == ("WorkerFailed", True)


def test_what_a_job_sweeps_is_no_cause_before_it_has_failed_as_a_whole(build):
    """From 1.31 on it is a `FailureTarget` first, and called failed once all of its pods have ended."""
    spec, failing = build.training().spec, replace(JOB, failing=build.seconds(2))
    swept = build.pod(1, delete_requested=build.seconds(2))
    crashed = build.pod(0, phase="Failed", exit_code=1, finished=build.seconds(300))  # by a clock that is ahead
    ending = judge(spec, failing, [crashed, swept], None, build.seconds(4))
    assert (ending.reason, ending.counted) == ("WorkerFailed", True)
    gone = build.pod(0, phase="Failed", exit_code=143, finished=build.seconds(2), delete_requested=build.seconds(1))
    for job in (failing, replace(failing, failed=True)):
        ending = judge(spec, job, [gone, swept], None, build.seconds(4))
        assert (ending.reason, ending.counted) == ("PodDeleted", False)
    assert judge(spec, failing, [build.pod(0), swept], None, build.seconds(4)) is None, "its end will show"


def test_a_preempted_pod_that_died_of_sigterm_does_not_count(build):
    pod = build.pod(
        0,
        phase="Failed",
        exit_code=143,
        disrupted=build.seconds(1),
        disruption="PreemptionByScheduler",
        finished=build.seconds(2),
    )
    ending = judge(build.training().spec, FAILED, [pod, build.pod(1)], None, build.seconds(3))
    assert (ending.reason, ending.counted) == ("PreemptionByScheduler", False)


def test_a_pod_that_is_gone_without_a_word_does_not_count(build):
    ending = judge(build.training().spec, FAILED, [build.pod(0, phase="Running")], None, build.start)
    assert (ending.reason, ending.counted) == ("PodLost", False)


@pytest.mark.parametrize(("silent_for", "ended"), [(9, False), (10, True)])
def test_a_node_that_is_not_ready_for_10_s_ends_the_attempt(build, silent_for, ended):
    nodes = {"n0": Node("n0", True, build.start, False), "n1": Node("n1", False, build.start, False)}
    ending = judge(build.training().spec, JOB, [build.pod(0), build.pod(1)], nodes, build.seconds(silent_for))
    assert (ending is not None and ending.reason == "NodeLost") == ended


@pytest.mark.parametrize(("back_for", "ended"), [(0, False), (59, False), (60, True)])
def test_a_node_that_is_late_after_an_outage_of_the_control_plane_is_given_a_minute(build, back_for, ended):
    """All were NotReady at once, and the first is back: it was no node's own fault."""
    nodes = {"n0": Node("n0", True, build.seconds(40), False), "n1": Node("n1", False, build.start, False)}
    ending = judge(build.training().spec, JOB, [build.pod(0), build.pod(1)], nodes, build.seconds(40 + back_for))
    assert (ending is not None) == ended
    left = until_unreachable([build.pod(1)], nodes, build.seconds(40 + back_for))
    assert left == (None if ended else 60 - back_for)
    stayed = nodes | {"n2": Node("n2", True, build.seconds(-99), False)}
    assert judge(build.training().spec, JOB, [build.pod(1)], stayed, build.seconds(10)).reason == "NodeLost"


def test_a_stopped_world_has_ended_when_its_pods_are_gone_or_out_of_reach(build):
    deleting = replace(JOB, deleting=True)
    spec = build.training().spec
    nodes = {name: Node(name, name != "n0", build.start, False) for name in ("n0", "n1")}
    assert judge(spec, deleting, [build.pod(0)], None, build.seconds(99)) is None
    assert judge(spec, deleting, [build.pod(0)], nodes, build.seconds(99)).reason == "Stopped"
    assert judge(spec, None, [], None, build.seconds(99)).reason == "Stopped"


@pytest.mark.parametrize("job", [JOB, FAILED])
def test_workers_that_are_done_are_enough_where_other_containers_keep_the_job_from_saying_so(build, job):
    spec = build.training().spec
    word = build.report(exportUri="file:///export")
    lingers = job is JOB
    first = build.pod(0, phase="Succeeded", exit_code=0, exit_message=word, lingers=lingers)
    peer = build.pod(1, phase="Succeeded", exit_code=0, lingers=lingers)
    assert judge(spec, job, [first, peer], None, build.start).final == "Succeeded"
    assert judge(spec, JOB, [first, build.pod(1)], None, build.start) is None
    assert judge(spec, JOB, [first, replace(peer, exit_code=1, phase="Failed")], None, build.start).counted


@pytest.mark.parametrize(("reason", "told"), [("OOMKilled", "Error"), ("RanksLost", "OOMKilled")])
def test_out_of_memory_names_the_container_the_limit_the_rank_and_what_to_change(build, reason, told):
    word = build.report("failed", reason=reason, message="rank 1 was killed by SIGKILL")
    pod = build.pod(1, phase="Failed", exit_code=1, exit_reason=told, exit_message=word, memory_limit="2Gi")
    ending = judge(build.training().spec, FAILED, [build.pod(0), pod], None, build.start)
    assert ending.reason == "OOMKilled"
    for part in ("container worker of pod tiny-a1-1", "limit of 2Gi", "rank 1 was killed", "resources.limits.memory"):
        assert part in ending.message
    assert "microBatchSize" in ending.message


@pytest.mark.parametrize(
    ("n1", "reason", "counted"),
    [
        (Node("n1", False, None, False), "NodeLost", False),
        (None, "NodeLost", False),
        (Node("n1", True, None, False), "PeerLost", True),
    ],
)
def test_peers_that_have_lost_a_pod_whose_node_is_silent_are_believed_at_once(build, n1, reason, counted):
    word = build.report("failed", reason="PeerLost", message="a peer is gone")
    gone = build.pod(0, phase="Failed", exit_code=1, exit_message=word, finished=build.seconds(3))
    nodes = {"n0": Node("n0", True, None, False)} | ({"n1": n1} if n1 else {})
    ending = judge(build.training().spec, FAILED, [gone, build.pod(1)], nodes, build.seconds(4))
    assert (ending.reason, ending.counted) == (reason, counted)


def test_a_node_that_was_deleted_is_lost_whatever_its_kubelet_does(build):
    nodes = {"n0": Node("n0", True, build.start, False)}
    ending = judge(build.training().spec, JOB, [build.pod(0), build.pod(1)], nodes, build.start)
    words = "node n1 of pod tiny-a1-1 is not in the cluster any more"
    assert (ending.reason, ending.message, ending.counted) == ("NodeLost", words, False)


def test_a_world_that_is_stopped_ends_though_nobody_ends_its_pod_where_nodes_can_not_be_read(build):
    deleted = build.pod(0, delete_requested=build.seconds(0), grace_seconds=30)
    stopped = replace(JOB, deleting=True)
    assert judge(build.training().spec, stopped, [deleted], None, build.seconds(59)) is None
    assert until_unreachable([deleted], None, build.seconds(59)) == 1
    assert judge(build.training().spec, stopped, [deleted], None, build.seconds(60)).reason == "Stopped"
    assert until_unreachable([deleted], None, build.seconds(60)) is None


FULL = "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: 900Mi."


@pytest.mark.parametrize(
    ("disruption", "reason", "counted"),
    [("TerminationByKubelet", "TerminationByKubelet", False), ("", "Evicted", True)],
)
@pytest.mark.parametrize("exit_code", [None, 75, 137])
def test_an_eviction_is_told_in_the_clusters_words(build, disruption, reason, counted, exit_code):
    disrupted = {"disrupted": build.start, "disruption": disruption, "disruption_message": FULL} if disruption else {}
    pod = build.pod(
        1,
        phase="Failed",
        exit_code=exit_code,
        failure="Evicted",
        failure_message=FULL,
        finished=build.start,
        **disrupted,
    )
    ending = judge(build.training().spec, FAILED, [build.pod(0), pod], None, build.start)
    assert (ending.reason, ending.counted) == (reason, counted)
    assert FULL in ending.message


@pytest.mark.parametrize("exit_code", [75, 137, 143])
def test_a_worker_that_somebody_has_ended_is_judged_once_the_cluster_says_who(build, exit_code):
    """The kubelet shows a container's end first, and a moment later that of its pod, with the reason."""
    spec = build.training().spec
    gone = build.pod(1, phase="Failed", exit_code=exit_code, finished=build.seconds(5), unexplained=True)
    word = build.report("failed", reason="PeerLost", message="a peer is gone")
    peers = [
        build.pod(0),
        build.pod(0, phase="Failed", exit_code=1, exit_message=word, finished=build.seconds(6)),
        build.pod(0, phase="Failed", exit_code=75, finished=build.seconds(4)),
    ]
    for peer in peers:
        assert judge(spec, JOB, [peer, gone], None, build.seconds(6)) is None
        told = replace(gone, unexplained=False, failure="Evicted", failure_message=FULL)
        told = replace(told, disrupted=build.seconds(7), disruption="TerminationByKubelet", disruption_message=FULL)
        ending = judge(spec, JOB, [peer, told], None, build.seconds(7))
        assert (ending.reason, ending.counted) == ("TerminationByKubelet", False)
        assert FULL in ending.message


@pytest.mark.parametrize(("exit_code", "reason"), [(75, "Interrupted"), (137, "WorkerFailed")])
def test_a_worker_of_whose_end_nothing_more_is_said_is_judged_soon(build, exit_code, reason):
    """As where a container beside it never ends."""
    pod = build.pod(1, phase="Failed", exit_code=exit_code, finished=build.seconds(5), unexplained=True)
    assert judge(build.training().spec, JOB, [build.pod(0), pod], None, build.seconds(7)) is None
    assert judge(build.training().spec, JOB, [build.pod(0), pod], None, build.seconds(8)).reason == reason
    ahead = replace(pod, finished=build.seconds(3600), lingers=True)
    assert judge(build.training().spec, JOB, [build.pod(0), ahead], None, build.seconds(8)).reason == reason


@pytest.mark.parametrize(
    ("said", "deleted", "reason", "counted"),
    [
        ("failed to start containerd task: context canceled", False, "Interrupted", False),
        ("failed to create shim task: context canceled: unknown", True, "PodDeleted", False),
        ('exec: "trian": executable file not found in $PATH', False, "WorkerFailed", True),
    ],
)
def test_a_worker_whose_start_was_called_off_has_not_failed(build, said, deleted, reason, counted):
    """As when its pod is deleted, or its kubelet ends, in the moment in which it begins."""
    when = {"delete_requested": build.seconds(5)} if deleted else {}
    end = {"exit_code": 128, "exit_reason": "StartError", "exit_message": said, "finished": build.seconds(5)}
    ending = judge(build.training().spec, JOB, [build.pod(0), build.pod(1, **end, **when)], None, build.seconds(9))
    assert (ending.reason, ending.counted) == (reason, counted)


@pytest.mark.parametrize("exit_code", [1, 139])
def test_a_crash_is_judged_at_once(build, exit_code):
    pod = build.pod(1, phase="Failed", exit_code=exit_code, finished=build.seconds(5), unexplained=True)
    assert judge(build.training().spec, JOB, [build.pod(0), pod], None, build.seconds(5)).counted


def test_a_pods_end_is_unexplained_until_its_phase_says_so(build):
    def pod(phase, policy="Never"):
        metadata = {"name": "tiny-0", "uid": "uid-0", "creationTimestamp": "2026-01-01T00:00:00Z"}
        ended = {"name": "worker", "state": {"terminated": {"exitCode": 137}}}
        status = {"phase": phase, "containerStatuses": [ended]}
        return build.pod_of({"metadata": metadata, "spec": {"restartPolicy": policy}, "status": status})

    assert [pod(phase).unexplained for phase in ("Running", "Failed")] == [True, False]
    assert not pod("Running", "Always").unexplained
