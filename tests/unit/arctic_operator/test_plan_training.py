"""Training plans, one by one and over whole lives: a small world with a Job controller and faults, and no clock."""

import json
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_api.common import BaseWeights, Resources
from arctic_api.training import ArcticTrainingStatus
from arctic_api.world import CORRECTABLE, ExitCode, Label, TrainingWorld
from arctic_operator.live import Live, Phase, RoutingSeen, SourceSeen, StageSeen, TrainingObservation
from arctic_operator.observed import (
    GENERATION_ANNOTATION,
    REVISION_ANNOTATION,
    Job,
    Judged,
    Node,
    TrainingSeen,
    read_status,
)
from arctic_operator.plan.training import plan_training
from arctic_operator.plan.training_status import invalid_status, is_finished
from arctic_operator.plan.words import NO_KUEUE


def condition_of(status, kind):
    return next(c for c in status["conditions"] if c["type"] == kind)


def condition(plan, kind):
    return condition_of(plan.status, kind)


ALL_CONDITIONS = [
    "Suspended",
    "PodsScheduled",
    "WorkersConnected",
    "CheckpointReady",
    "Degraded",
    "Succeeded",
    "Failed",
]


def test_the_first_visit_makes_the_first_world_and_sets_every_condition(build):
    plan = plan_training(build.training(generation=3), TrainingSeen(), build.settings, build.start)
    assert [job["metadata"]["name"] for job in plan.create] == ["tiny-0a1b2-a1"]
    assert [child["kind"] for child in plan.apply] == ["Service", "NetworkPolicy"]
    assert plan.needs_fresh
    assert [c["type"] for c in plan.status["conditions"]] == ALL_CONDITIONS
    assert {c["observedGeneration"] for c in plan.status["conditions"]} == {3}


def test_nothing_is_made_while_the_object_is_being_deleted(build):
    plan = plan_training(replace(build.training(), deleting=True), TrainingSeen(), build.settings, build.start)
    assert (plan.create, plan.apply, plan.status) == ((), (), None)


def test_the_epoch_rises_with_each_attempt_even_where_the_status_lags(build):
    pod = build.pod(0, attempt=7, phase="Failed", exit_code=1)
    status = {"attempt": 6, "attempts": [record(7)]}
    plan = plan_training(build.training(status), TrainingSeen(pods=[pod]), build.settings, build.seconds(900))
    world = world_of(plan.create[0])
    assert (world.attempt, world.epoch) == (8, 8)


def test_a_pod_for_which_its_kubelet_has_no_room_is_a_failure_like_others(build):
    pod = build.pod(0, phase="Failed", failure="OutOfnvidia.com/gpu", failure_message="Node didn't have enough")
    seen = TrainingSeen(jobs=[Job("tiny-0a1b2-a1", "job-1", 1, 1, "r1", failed=True)], pods=[pod])
    plan = plan_training(build.training({"attempt": 1}), seen, build.settings, build.seconds(9))
    assert [(each["reason"], each["counted"]) for each in plan.status["attempts"]] == [("OutOfnvidia.com/gpu", True)]
    assert condition(plan, "Degraded")["reason"] == "OutOfnvidia_com_gpu"


def test_the_backoff_grows_with_failures_up_to_its_longest(build):
    waits = {}
    for restarts in (1, 2, 3, 30):
        entry = record(restarts, counted=True, start_time="2025-12-31T23:59:30Z")
        status = {"attempt": restarts, "restarts": restarts, "attempts": [entry]}
        training = build.training(
            status, restart={"limit": 99, "backoff": {"initial": "10s", "factor": 2, "max": "60s"}}
        )
        plan = plan_training(training, TrainingSeen(), build.settings, build.start)
        assert plan.create == ()
        waits[restarts] = plan.requeue_after
    assert waits == {1: 10, 2: 20, 3: 40, 30: 60}


def test_an_attempt_that_ended_in_the_future_is_not_waited_for_longer_than_the_backoff(build):
    """Clocks are set back."""
    entry = record(1, counted=True, start_time="2026-01-01T05:59:30Z", completion_time="2026-01-01T06:00:00Z")
    status, backoff = {"attempt": 1, "restarts": 1, "attempts": [entry]}, {"backoff": {"initial": "9s"}}
    plan = plan_training(build.training(status, restart=backoff), TrainingSeen(), build.settings, build.start)
    assert (plan.create, plan.requeue_after) == ((), 9)
    plan = plan_training(build.training(plan.status, restart=backoff), TrainingSeen(), build.settings, build.seconds(9))
    assert len(plan.create) == 1


@pytest.mark.parametrize(
    ("lives", "wait"),
    [
        ([("23:00:00", "23:30:00", True)], 10),
        ([("23:00:00", "23:09:59", True)], 600),
        ([("23:00:00", "23:30:00", True), ("23:31:00", "23:31:20", True)], 20),
        ([("23:00:00", "23:30:00", False), ("23:31:00", "23:31:20", True)], 10),
        ([("23:00:00", "23:30:00", True), ("23:31:00", "23:31:20", False), ("23:32:00", "23:32:20", True)], 20),
    ],
)
def test_after_an_attempt_that_lived_for_long_the_backoff_begins_anew(build, lives, wait):
    """A training of weeks is not to wait for ten minutes because it has failed before."""
    entries = [
        record(7 + i, counted=counted, start_time=f"2025-12-31T{began}Z", completion_time=f"2025-12-31T{ended}Z")
        for i, (began, ended, counted) in enumerate(lives)
    ]
    status = {"attempt": 6 + len(lives), "restarts": 7, "attempts": entries}
    training = build.training(status, restart={"backoff": {"initial": "10s", "factor": 2, "max": "10m"}})
    ended = datetime.fromisoformat(entries[-1]["completionTime"])
    assert plan_training(training, TrainingSeen(), build.settings, ended).requeue_after == wait


def test_an_interruption_is_followed_at_once_unless_it_came_at_once(build):
    old = record(1, start_time="2025-12-31T23:00:00Z")
    young = record(1, start_time="2025-12-31T23:59:58Z")
    for entry, made in ((old, 1), (young, 0)):
        training = build.training({"attempt": 1, "attempts": [entry]})
        assert len(plan_training(training, TrainingSeen(), build.settings, build.start).create) == made


def test_a_child_that_can_not_pull_its_image_shows_in_state_and_condition(build):
    pods = [
        build.pod(i, phase="Pending", waiting="ImagePullBackOff", waiting_message="no such image x:1") for i in range(2)
    ]
    seen = TrainingSeen(jobs=[job(build)], pods=pods)
    plan = plan_training(build.training({"attempt": 1}), seen, build.settings, build.start)
    assert plan.status["state"] == "ImagePullBackOff"
    assert condition(plan, "Degraded")["reason"] == "ImagePullBackOff"
    assert "no such image x:1" in condition(plan, "Degraded")["message"]


def test_a_pod_without_a_node_shows_the_schedulers_sentence(build):
    pods = [build.pod(0), build.pod(1, phase="Pending", node="", unschedulable="0/2 nodes are available")]
    seen = TrainingSeen(jobs=[job(build)], pods=pods)
    plan = plan_training(build.training({"attempt": 1}), seen, build.settings, build.start)
    assert condition(plan, "PodsScheduled")["status"] == "False"
    assert "0/2 nodes are available" in condition(plan, "PodsScheduled")["message"]


def test_what_rank_0_says_is_shown_and_never_ends_the_training(build):
    stage = StageSeen("general", 500_000, started=build.start)
    seen = observation(
        build,
        phase=Phase.DONE,
        step=122,
        tokens=500_000,
        loss=2.5,
        tokens_per_second=1000.0,
        exposed_communication=0.084,
        exposed_by_kind={"gradients": 1.0, "dispatch": 0.051},
        expert_chunks=2,
        stages=(stage,),
    )
    seen = replace(seen, sources=(SourceSeen("books", 90, 2, 1000, 0.5, 2.0, ("test",)),))
    plan = plan_training(*running(build, seen), build.settings, build.seconds(60))
    status = plan.status
    assert (status["step"], status["tokens"], status["loss"], status["tokensPerSecond"]) == (
        122,
        500_000,
        "2.5000",
        1000,
    )
    assert status["exposedCommunication"] == "8% (dispatch 5%, gradients 100%), 2 chunks"
    assert status["stages"][0]["tokens"] == 500_000
    assert status["sources"] == [
        {"name": "books", "documents": 90, "skipped": 2, "tokens": 1000, "epochs": "0.500", "plannedEpochs": "2.000"}
        | {"unusedSplits": ["test"]}
    ]
    assert status["eta"] == "2026-01-01T00:09:30Z"  # 500 s after now, to the nearest half minute
    assert condition(plan, "Succeeded")["status"] == "False"


def test_how_the_latest_steps_went_is_shown_as_text(build):
    seen = observation(
        build,
        step=5,
        learning_rate=3e-4,
        gradient_norm=1.23456,
        loss_by_source={"code": 2.5, "books": 3.0},
        seconds={"data": 1.0, "compute": 7.0, "checkpoint": 2.0, "what a newer worker counts": 0.0},
        routing=RoutingSeen(imbalance=1.5, entropy=0.9, dead_experts=2, dropped=0.0),
        skipped_updates=3,
        recomputes=True,
    )
    status = plan_training(*running(build, seen), build.settings, build.seconds(60)).status
    assert (status["learningRate"], status["gradientNorm"], status["skippedUpdates"]) == ("0.0003", "1.235", 3)
    assert status["recomputesActivations"] is True
    assert status["lossBySource"] == [{"name": "books", "loss": "3.0000"}, {"name": "code", "loss": "2.5000"}]
    assert status["timeShares"] == {"data": "0.100", "compute": "0.700", "checkpoint": "0.200"}
    assert status["routing"] == {"imbalance": "1.500", "entropy": "0.900", "deadExperts": 2, "dropped": "0.0000"}


def test_steps_and_tokens_are_said_before_any_pod_and_memory_before_the_first_step(build):
    stage = build.training().spec.curriculum.stages[0].wire() | {"tokens": 10_000, "tokensPerStep": 4096}
    stages = [stage | {"name": "a"}, stage | {"name": "b", "tokensPerStep": 8192}]
    for stop_after, steps, tokens in ((None, 5, 3 * 4096 + 2 * 8192), ("a", 3, 3 * 4096)):
        training = build.training(curriculum={"stages": stages}, stopAfter=stop_after)
        status = plan_training(training, TrainingSeen(), build.settings, build.start).status
        assert (status["plannedSteps"], status["plannedTokens"]) == (steps, tokens)
        assert "plannedMemory" not in status
    training, others = running(build, observation(build, planned_memory=3 * 2**20 + 1))
    told = plan_training(training, others, build.settings, build.seconds(60)).status
    assert told["plannedMemory"] == "4Mi"
    training, others = running(build, observation(build, step=5))
    before = ArcticTrainingStatus.model_validate(told)
    kept = plan_training(replace(training, status=before), others, build.settings, build.seconds(60)).status
    assert kept["plannedMemory"] == "4Mi"


@pytest.mark.parametrize(("rate", "time", "cost"), [(100, "1m22s", "0.91"), (2, "1h8m", "45.51")])
def test_time_and_cost_are_said_before_any_pod_where_the_manifest_expects_a_rate(build, rate, time, cost):
    stage = build.training().spec.curriculum.stages[0].wire() | {"tokens": 8000, "tokensPerStep": 4096}
    gpus = {"resources": {"limits": {"nvidia.com/gpu": 8}}, "pricePerGPUHour": "2.50"}
    training = build.training(curriculum={"stages": [stage]}, expectedTokensPerSecond=rate, **gpus)
    status = plan_training(training, TrainingSeen(), build.settings, build.start).status
    assert (status["plannedTime"], status["plannedCostUSD"]) == (time, cost)
    training = build.training(curriculum={"stages": [stage]}, **gpus)
    assert (
        not {"plannedTime", "plannedCostUSD"}
        & plan_training(training, TrainingSeen(), build.settings, build.start).status.keys()
    )


def test_the_time_left_is_that_of_the_stages_that_are_to_be_trained(build):
    stages = [build.training().spec.curriculum.stages[0].wire() | {"name": name} for name in ("a", "b")]
    seen = observation(build, step=5, tokens=500_000, tokens_per_second=1000.0, stop_after="a")
    training, others = running(build, seen)
    for stop_after, eta in (("a", "2026-01-01T00:09:30Z"), (None, "2026-01-01T00:26:00Z")):
        spec = build.training(curriculum={"stages": stages}, stopAfter=stop_after).spec
        plan = plan_training(replace(training, spec=spec), others, build.settings, build.seconds(60))
        assert plan.status["eta"] == eta


def test_a_world_whose_pods_end_one_by_one_is_finishing_not_starting(build):
    pods = [build.pod(0, phase="Succeeded", exit_code=0), build.pod(1)]
    seen = TrainingSeen(jobs=[job(build)], pods=pods)
    plan = plan_training(build.training({"attempt": 1}), seen, build.settings, build.seconds(60))
    assert plan.status["state"] == "Finishing"


def test_an_earlier_attempts_word_is_not_taken_for_this_ones(build):
    seen = replace(observation(build, step=99), epoch=2)
    plan = plan_training(*running(build, seen), build.settings, build.start)
    assert "step" not in plan.status


def test_gpu_hours_and_their_price_add_up_over_attempts(build):
    training, seen = running(build, None)
    training = replace(
        training,
        spec=build.training(resources={"limits": {"nvidia.com/gpu": 8}}, pricePerGPUHour="2.50").spec,
    )
    seen = replace(seen, jobs=[replace(job(build), gpu_hours_before=10.0)])
    status = plan_training(training, seen, build.settings, build.seconds(3600)).status
    assert (status["gpuHours"], status["costUSD"]) == ("26.000", "65.00")
    edited = replace(training, status=training.status.model_copy(update={"gpu_hours": "many"}))
    assert plan_training(edited, seen, build.settings, build.seconds(3600)).status["gpuHours"] == "26.000"


@pytest.mark.parametrize(
    ("resources", "hours"),
    [
        ({"nvidia.com/gpu": 8}, "16.000"),
        ({"nvidia.com/gpu": "8000m"}, "16.000"),
        ({"nvidia.com/gpu": "0.5"}, "1.000"),
        ({"nvidia.com/gpu": "1k", "cpu": "4"}, "2000.000"),
        ({"amd.com/gpu": "1Ki"}, "2048.000"),
        ({"nvidia.com/mig-1g.5gb": 2, "gpu.intel.com/xe": 1}, "6.000"),
        ({"habana.ai/gaudi": 1}, "2.000"),
        ({"nvidia.com/gpu.shared": 2}, "4.000"),
        ({"cpu": 8, "memory": "16Gi", "example.com/gpus-wanted": 1}, "2.000"),
    ],
)
@pytest.mark.parametrize("default", [False, True])
def test_gpus_of_any_vendor_count_in_any_notation_and_as_the_chart_sets_them(build, resources, hours, default):
    training, seen = running(build, None)
    limits = Resources(limits=resources)
    settings = build.settings.model_copy(update={"worker_resources": limits if default else None})
    if not default:
        training = replace(training, spec=training.spec.model_copy(update={"resources": limits}))
    assert plan_training(training, seen, settings, build.seconds(3600)).status.get("gpuHours") == hours


def test_suspend_stops_the_world_keeps_what_it_reached_and_resume_makes_the_next(build):
    training, seen = running(build, observation(build, step=50, tokens=5))
    suspended = replace(training, spec=build.training(suspend=True).spec)
    plan = plan_training(suspended, seen, build.settings, build.start)
    assert [(d.kind, d.after_pods) for d in plan.delete] == [("Job", True)]
    assert (plan.status["state"], plan.status["step"]) == ("Suspending", 50)

    gone = TrainingSeen()
    plan = plan_training(suspended, gone, build.settings, build.seconds(60))
    assert plan.needs_fresh
    assert plan.status["attempts"][0]["reason"] == "Suspended"
    recorded = build.training(plan.status, suspend=True)
    plan = plan_training(recorded, gone, build.settings, build.seconds(61))
    assert (plan.status["state"], condition(plan, "Suspended")["status"]) == ("Suspended", "True")
    plan = plan_training(build.training(plan.status), gone, build.settings, build.seconds(62))
    assert world_of(plan.create[0]).attempt == 2


def test_an_edited_specification_stops_the_world_without_counting(build):
    training, seen = running(build, None)
    plan = plan_training(replace(training, generation=2, revision="r2"), seen, build.settings, build.start)
    assert [d.kind for d in plan.delete] == ["Job"]
    stopping = replace(seen, jobs=[replace(job(build), deleting=True)], pods=[])
    plan = plan_training(replace(training, generation=2, revision="r2"), stopping, build.settings, build.start)
    assert (plan.status["attempts"][0]["reason"], plan.status["restarts"]) == ("SpecChanged", 0)


def test_an_upgrade_that_computes_revisions_otherwise_leaves_a_world_alone(build):
    training = build.training()
    cluster = Cluster(build, training)
    for _ in range(3):
        cluster.reconcile()
        cluster.tick()
    upgraded = replace(training, revision="computed-otherwise")
    harmless_edit = replace(upgraded, generation=2)
    next_upgrade = replace(harmless_edit, revision="otherwise-again")
    for cluster.training in (upgraded, harmless_edit, next_upgrade):
        assert cluster.reconcile().delete == ()
        cluster.tick()
    cluster.training = replace(training, generation=3, revision="r3")
    assert [d.kind for d in cluster.reconcile().delete] == ["Job"]


def test_deadlines_fail_the_training_and_end_its_world(build):
    late = build.training({"attempt": 1}, startDeadline="10m")
    pods = [build.pod(0), build.pod(1, phase="Pending")]
    plan = plan_training(late, TrainingSeen(jobs=[job(build)], pods=pods), build.settings, build.seconds(601))
    assert condition(plan, "Failed")["reason"] == "StartDeadlineExceeded"
    assert [d.name for d in plan.delete] == ["tiny-0a1b2-a1"]

    training, seen = running(build, None)
    long = replace(training, spec=build.training(activeDeadline="1h").spec)
    assert plan_training(long, seen, build.settings, build.seconds(3599)).requeue_after == 1
    plan = plan_training(long, seen, build.settings, build.seconds(3600))
    assert condition(plan, "Failed")["reason"] == "ActiveDeadlineExceeded"


def test_a_success_that_a_pod_has_told_stands_though_the_pod_may_be_gone_by_the_next_look(build):
    word = build.report(exportUri="file:///export")
    pods = [build.pod(i, phase="Succeeded", exit_code=0, exit_message=word) for i in range(2)]
    seen = TrainingSeen(jobs=[replace(job(build), complete=True)], pods=pods)
    plan = plan_training(build.training({"attempt": 1}), seen, build.settings, build.start)
    assert (plan.status["state"], plan.needs_fresh) == ("Succeeded", False)


def test_an_ended_training_is_deleted_after_its_time(build):
    status = {
        "completionTime": "2026-01-01T00:00:00Z",
        "conditions": [succeeded()],
        "attempt": 1,
    }
    training = build.training(status, ttlAfterFinished="1h")
    plan = plan_training(training, TrainingSeen(), build.settings, build.seconds(3599))
    assert (plan.delete, plan.requeue_after, plan.status["state"]) == ((), 1, "Succeeded")
    plan = plan_training(training, TrainingSeen(), build.settings, build.seconds(3600))
    assert [(d.kind, d.uid) for d in plan.delete] == [("ArcticTraining", build.uid)]


ODD_MOMENTS = ["2026-01-01t00:00:00z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-01-01T00:00:00+99:00"]
"""What the API server takes for times, and no operator has written: a status may be edited."""


@pytest.mark.parametrize("odd", ODD_MOMENTS)
def test_times_that_somebody_has_written_into_a_status_keep_no_training_from_its_way(build, odd):
    waits = {"restart": {"backoff": {"initial": "1s"}}, "startDeadline": "1h", "activeDeadline": "1h"}
    entry = record(1, counted=True, start_time=odd, completion_time=odd)
    status = {"attempt": 1, "restarts": 1, "attempts": [entry], "startTime": odd}
    first = plan_training(build.training(status, **waits), TrainingSeen(), build.settings, build.seconds(1000))
    then = plan_training(build.training(first.status, **waits), TrainingSeen(), build.settings, build.seconds(1001))
    assert len(first.create or then.create) == 1
    ended = {"attempt": 1, "completionTime": odd, "conditions": [succeeded()]}
    training = build.training(ended, ttlAfterFinished="1h")
    plan = plan_training(training, TrainingSeen(), build.settings, build.seconds(1000))
    assert (plan.delete, plan.status["state"]) == ((), "Succeeded")


def test_an_ended_training_that_is_evaluated_is_deleted_once_that_has_ended(build):
    """What is beside it would go with it."""
    when = "2026-01-01T00:00:00Z"
    stage = {"name": "general", "tokens": 1, "budget": 1, "completionTime": when, "checkpoint": "file:///c"}
    status = {"completionTime": when, "conditions": [succeeded()], "attempt": 1, "stages": [stage]}
    suites = {"suites": ["perplexity", "gsm8k"], "data": [{"name": "gsm8k", "uri": "file:///suites/test.jsonl"}]}
    training = build.training(status, ttlAfterFinished="1h", evaluation=suites)
    due = plan_training(training, TrainingSeen(), build.settings, build.seconds(3700))
    assert ([made["kind"] for made in due.apply], due.delete) == (["ArcticEvaluation"], ())
    name = due.apply[0]["metadata"]["name"]
    runs = plan_training(training, TrainingSeen(judged=[Judged(name)]), build.settings, build.seconds(3700))
    assert (runs.apply, runs.delete) == ((), ())
    ended = TrainingSeen(judged=[Judged(name, ended=True)])
    assert plan_training(training, ended, build.settings, build.seconds(3599)).delete == ()
    assert len(plan_training(training, ended, build.settings, build.seconds(3700)).delete) == 1


def test_a_training_from_anothers_weights_waits_for_its_export(build):
    training = build.training(model={"from": {"training": "base"}})
    plan = plan_training(training, TrainingSeen(), build.settings, build.start)
    assert (plan.create, plan.status["state"]) == ((), "WaitingForTraining")
    base = BaseWeights(training="base", folder="/var/lib/arctic/store/team/base-12345/export", claim_name="store")
    plan = plan_training(training, TrainingSeen(base=base), build.settings, build.start)
    assert world_of(plan.create[0]).weights_folder == base.folder
    elsewhere = base.model_copy(update={"claim_name": "other"})
    plan = plan_training(training, TrainingSeen(base=elsewhere), build.settings, build.start)
    assert world_of(plan.create[0]).weights_folder == "/var/lib/arctic/base/team/base-12345/export"


def test_a_world_is_looked_at_again_while_no_node_is_ready_as_the_first_that_comes_back_may_be_anothers(build):
    nodes = {name: Node(name, False, build.start, False) for name in ("n0", "n1", "another")}
    for seconds in (1, 60):
        seen = TrainingSeen(jobs=[job(build)], pods=[build.pod(0), build.pod(1)], nodes=nodes)
        plan = plan_training(build.training({"attempt": 1}), seen, build.settings, build.seconds(seconds))
        assert "attempts" not in plan.status
        assert plan.requeue_after <= 10


def test_a_pod_on_a_dead_node_does_not_hold_up_the_next_attempt_but_one_on_a_live_node_does(build):
    status = {"attempt": 1, "attempts": [record(1)]}
    pods = [build.pod(1, delete_requested=build.start, grace_seconds=30)]
    dead, alive = (
        {name: Node(name, name == "n0" or ready, build.start, False) for name in ("n0", "n1")}
        for ready in (False, True)
    )
    for nodes, made in ((dead, 1), (alive, 0), (None, 0)):
        seen = TrainingSeen(jobs=[replace(job(build), deleting=True)], pods=pods, nodes=nodes)
        plan = plan_training(build.training(status), seen, build.settings, build.seconds(40))
        assert len(plan.create) == made


@pytest.mark.parametrize("end", ["failed", "failing"])
def test_a_node_that_is_back_under_its_old_name_runs_nothing_of_the_world_that_it_lost(build, end):
    lost = record(1) | {"reason": "NodeLost"}
    training = build.training({"attempt": 1, "attempts": [lost]})
    back = {name: Node(name, True, build.seconds(90), False) for name in ("n0", "n1")}
    failed = replace(job(build), **({"failed": True} if end == "failed" else {"failing": build.seconds(60)}))
    seen = TrainingSeen(jobs=[failed], pods=[build.pod(1)], nodes=back)
    plan = plan_training(training, seen, build.settings, build.seconds(91))
    assert ([(d.name, d.grace_seconds) for d in plan.delete], plan.create) == ([("tiny-a1-1", 1)], ())
    plan = plan_training(training, replace(seen, pods=()), build.settings, build.seconds(93))
    assert world_of(plan.create[0]).epoch == 2


@pytest.mark.parametrize("status", [{}, {"state": "Failed"}, {"attempt": 1, "restarts": 9, "attempts": []}])
def test_what_the_status_does_not_know_any_more_is_seen_in_what_exists(build, status):
    third = replace(job(build), name="tiny-0a1b2-a3", uid="job-3", attempt=3)
    pods = [build.pod(i, attempt=3) for i in range(2)]
    plan = plan_training(
        build.training(status), TrainingSeen(jobs=[third], pods=pods), build.settings, build.seconds(60)
    )
    assert (plan.create, plan.delete, plan.status["attempt"], plan.status["state"]) == ((), (), 3, "Starting")
    word = build.report(exportUri="file:///export")
    done = [build.pod(i, attempt=3, phase="Succeeded", exit_code=0, exit_message=word) for i in range(2)]
    seen = TrainingSeen(jobs=[replace(third, complete=True)], pods=done)
    plan = plan_training(build.training(status), seen, build.settings, build.seconds(60))
    assert (plan.status["state"], plan.status["export"]["uri"]) == ("Succeeded", "file:///export")


def test_survivors_of_a_broken_world_get_a_second_and_those_of_one_that_stops_in_order_their_grace_period(build):
    nodes = {"n0": Node("n0", True, build.start, False), "n1": Node("n1", False, build.start, False)}
    lost = record(1) | {"reason": "NodeLost"}
    seen = TrainingSeen(jobs=[job(build)], pods=[build.pod(0), build.pod(1)], nodes=nodes)
    for entry, hurried in ((lost, ["tiny-a1-0"]), (record(1, counted=True), ["tiny-a1-0"]), (record(1), [])):
        training = build.training({"attempt": 1, "attempts": [entry]})
        plan = plan_training(training, seen, build.settings, build.seconds(60))
        assert [(d.name, d.grace_seconds) for d in plan.delete if d.kind == "Pod"] == [(name, 1) for name in hurried]
        assert [d.kind for d in plan.delete] == [*("Pod" for _ in hurried), "Job"], "its Job would give them all of it"
    told = replace(seen, pods=[build.pod(0, delete_requested=build.start, grace_seconds=1), build.pod(1)])
    plan = plan_training(build.training({"attempt": 1, "attempts": [lost]}), told, build.settings, build.seconds(60))
    assert [d.kind for d in plan.delete] == ["Job"]


@pytest.mark.parametrize(("kind", "state"), [("finish", "Succeeded"), ("crash", "Running")])
def test_a_container_that_never_ends_keeps_no_training_from_its_end_or_its_next_attempt(build, kind, state):
    cluster = Cluster(build, build.training(restart={"limit": 3, "backoff": {"initial": "1s", "max": "1s"}}))
    cluster.sidecars = True
    for _ in range(3):
        cluster.reconcile()
        cluster.tick()
    if kind == "finish":
        cluster.finish()
    else:
        cluster.fault("crash", 0)
    for _ in range(6):
        cluster.reconcile()
        cluster.tick()
    assert cluster.status["state"] in (state, "Starting" if state == "Running" else state)
    assert not any(pod.lingers for pod in cluster.pods.values())
    assert [a["reason"] for a in cluster.status["attempts"]] == ["Succeeded" if kind == "finish" else "WorkerFailed"]


# -- whole lives


def queued(build, told="", **spec):
    """The Job of a training that is made for queue `team`, and the plan for it while it waits there."""
    (made,) = plan_training(build.training(queue="team"), TrainingSeen(), build.settings, build.start).create
    job = build.job_of(made | {"metadata": made["metadata"] | {"uid": "job"}})
    training = build.training({"attempt": 1}, **{"queue": "team"} | spec)
    seen = TrainingSeen(jobs=[job], refusals={job.name: told} if told else {})
    return made, plan_training(training, seen, build.settings, build.seconds(9))


def test_a_world_of_a_queue_waits_for_it_and_says_why(build):
    made, plan = queued(build, told="insufficient unused quota for cpu")
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert made["spec"]["suspend"] is True
    assert (plan.create, plan.delete, [job.name for job in plan.short]) == ((), (), ["tiny-0a1b2-a1"])
    assert plan.status["state"] == "Queued"
    degraded = condition(plan, "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("False", "Queued")
    assert degraded["message"] == "queue team has not admitted it: insufficient unused quota for cpu"


def test_a_queue_that_nobody_sees_to_is_told_as_trouble(build):
    _, plan = queued(build, told=NO_KUEUE)
    assert condition(plan, "Degraded")["reason"] == "NoKueue"
    assert condition(plan, "Degraded")["message"] == NO_KUEUE


def test_a_world_without_a_queue_is_not_made_suspended(build):
    (job,) = plan_training(build.training(), TrainingSeen(), build.settings, build.start).create
    assert "suspend" not in job["spec"]


@pytest.mark.parametrize(
    ("queue", "reason", "message"),
    [
        ("team", "Preempted", "queue team has taken its nodes back"),
        (None, "JobSuspended", "somebody has suspended its Job"),
    ],
)
def test_a_world_whose_nodes_are_taken_back_ends_uncounted_and_the_next_one_waits(build, queue, reason, message):
    suspended = Job("a1", "job", 1, 1, "r1", suspended=True, queue=queue or "")
    pods = [replace(build.pod(index), delete_requested=build.start, grace_seconds=60) for index in range(2)]
    training = build.training({"attempt": 1}, queue=queue)
    plan = plan_training(training, TrainingSeen(jobs=[suspended], pods=pods), build.settings, build.seconds(60))
    (entry,) = plan.status["attempts"]
    assert (entry["reason"], entry["message"], entry["counted"]) == (reason, message, False)
    training = build.training(plan.status, queue=queue)
    after = plan_training(training, TrainingSeen(jobs=[suspended], pods=pods), build.settings, build.seconds(61))
    assert (after.create, [(delete.uid, delete.after_pods) for delete in after.delete]) == ((), [("job", True)])
    (job,) = plan_training(training, TrainingSeen(), build.settings, build.seconds(99)).create
    assert (world_of(job).epoch, job["spec"].get("suspend", False)) == (2, queue is not None)


@pytest.mark.parametrize("wanted", [{"queue": "other"}, {"queue": None}])
def test_a_world_that_waits_moves_to_another_queue_at_once(build, wanted):
    _, plan = queued(build, **wanted)
    assert [delete.uid for delete in plan.delete] == ["job"]


def test_a_world_that_runs_stays_where_it_was_admitted(build):
    job = Job("a1", "job", 1, 1, "r1", queue="team")
    seen = TrainingSeen(jobs=[job], pods=[build.pod(0), build.pod(1)])
    assert plan_training(build.training({"attempt": 1}, queue="other"), seen, build.settings, build.start).delete == ()


class Cluster:
    """A Job controller, kubelets and nodes: just what they do to the children of one training."""

    def __init__(self, build, training):
        self.build, self.training = build, training
        self.now = build.start
        self.jobs, self.pods, self.dead = {}, {}, {}
        self.raw, self.status = {}, {}
        self.sidecars, self.queue_is_open = False, True
        self.begun = set()

    def seen(self):
        nodes = {f"n{i}": Node(f"n{i}", f"n{i}" not in self.dead, self.dead.get(f"n{i}"), False) for i in range(2)}
        return TrainingSeen(jobs=list(self.jobs.values()), pods=list(self.pods.values()), nodes=nodes)

    def reconcile(self):
        training = replace(self.training, status=read_status(ArcticTrainingStatus, self.status))
        plan = plan_training(training, self.seen(), self.build.settings, self.now)
        for manifest in plan.create:
            self.create(manifest)
        for mark in plan.mark:
            self.mark(mark)
        for delete in plan.delete:
            for name, found in list(self.jobs.items()):
                if found.uid == delete.uid:
                    self.jobs[name] = replace(found, deleting=True)
            for key, pod in list(self.pods.items()):
                if pod.uid == delete.uid:
                    since = pod.delete_requested or self.now
                    self.pods[key] = replace(pod, delete_requested=since, grace_seconds=delete.grace_seconds)
        self.status = plan.status or self.status
        return plan

    def create(self, manifest):
        attempt = int(manifest["metadata"]["labels"][Label.ATTEMPT])
        assert attempt not in self.begun, "an attempt was made twice"
        runs = [pod for pod in self.pods.values() if not pod.ended and pod.node not in self.dead]
        assert not runs, "two worlds that can commit"
        assert attempt > max(self.begun, default=0), "the epoch went back"
        self.raw[attempt] = manifest
        stamped = manifest | {"metadata": manifest["metadata"] | {"uid": f"job-{attempt}"}}
        self.jobs[attempt] = replace(self.build.job_of(stamped), created=self.now)
        if not self.jobs[attempt].suspended:
            self.make_pods(attempt)

    def make_pods(self, attempt):
        """What the Job controller does once a Job may run; where pods still end, it waits for them."""
        self.begun.add(attempt)
        for index in {0, 1} - {index for number, index in self.pods if number == attempt}:
            self.pods[attempt, index] = self.build.pod(
                index, attempt, phase="Pending", started=None, created=self.now, node=f"n{index}"
            )

    def mark(self, mark):
        for attempt, found in self.jobs.items():
            if found.uid == mark.uid:
                generation = int(mark.annotations[GENERATION_ANNOTATION])
                self.jobs[attempt] = replace(
                    found, generation=generation, revision=mark.annotations[REVISION_ANNOTATION]
                )

    def tick(self, seconds=5.0):
        """Let the controllers do their part, and time pass."""
        self.now += timedelta(seconds=seconds)
        for attempt in list(self.jobs):
            self.control(attempt)
        for key, pod in list(self.pods.items()):
            if pod.node in self.dead:
                continue
            if pod.delete_requested and pod.delete_requested < self.now:
                del self.pods[key]
            elif pod.phase == "Pending":
                self.pods[key] = replace(pod, phase="Running", started=self.now)
        for attempt, found in list(self.jobs.items()):
            if found.deleting and not any(key[0] == attempt for key in self.pods):
                del self.jobs[attempt]

    def control(self, attempt):
        """What the Job controller does for one Job."""
        found = self.jobs[attempt]
        if found.suspended and self.queue_is_open and not found.deleting:
            found = self.jobs[attempt] = replace(found, suspended=False)
            self.make_pods(attempt)
        pods = {key: pod for key, pod in self.pods.items() if key[0] == attempt}
        phases = ["Running" if pod.lingers else pod.phase for pod in pods.values()]
        if found.suspended:
            pass
        elif ("Failed" in phases or len(pods) < 2) and not found.complete:
            found = replace(found, failed=True, ended=self.now)
        elif phases == ["Succeeded", "Succeeded"]:
            found = replace(found, complete=True)
        self.jobs[attempt] = found
        for key, pod in pods.items():
            runs = pod.lingers or not pod.ended
            if (found.failed or found.deleting or found.suspended) and runs and pod.delete_requested is None:
                self.pods[key] = replace(pod, delete_requested=self.now, grace_seconds=120)

    def fault(self, kind, index):
        """Do harm to a node, to the object, or to a pod that runs."""
        running = [key for key, pod in self.pods.items() if pod.phase == "Running" and pod.node not in self.dead]
        if kind == "node":
            self.dead[f"n{index}"] = self.now
        elif kind == "mend":
            self.dead.pop(f"n{index}", None)
        elif kind == "sidecars":
            self.sidecars = True
        elif kind in ("open", "close", "take back"):
            self.decide(kind)
        elif kind == "job":
            self.jobs = {attempt: replace(found, deleting=True) for attempt, found in self.jobs.items()}
        elif kind in ("suspend", "resume"):
            spec = self.training.spec.model_copy(update={"suspend": kind == "suspend"})
            self.training = replace(self.training, spec=spec)
        elif kind == "forget":
            self.status = {name: value for name, value in self.status.items() if name != "conditions"}
        elif running:
            self.harm(running[index % len(running)], kind)

    def decide(self, kind):
        """What a queue does."""
        self.queue_is_open = kind == "open"
        for attempt, found in self.jobs.items():
            if kind == "take back" and found.queue and not (found.complete or found.failed):
                self.jobs[attempt] = replace(found, suspended=True)

    def harm(self, key, kind):
        pod = self.pods[key]
        codes = {"crash": 1, "interrupt": ExitCode.INTERRUPTED, "quit": 0}
        if kind == "delete":
            self.pods[key] = replace(pod, delete_requested=self.now)
        elif kind == "vanish":
            del self.pods[key]
        else:
            phase = "Failed" if codes[kind] else "Succeeded"
            ended = {"phase": phase, "exit_code": codes[kind], "finished": self.now, "lingers": self.sidecars}
            self.pods[key] = replace(pod, **ended)

    def finish(self):
        """Let every pod of the newest world end well."""
        newest = max(self.raw, default=0)
        for key, pod in list(self.pods.items()):
            if key[0] == newest and pod.phase == "Running" and pod.delete_requested is None:
                message = self.build.report(exportUri="file:///export") if key[1] == 0 else ""
                done = {"phase": "Succeeded", "exit_code": 0, "exit_message": message, "finished": self.now}
                self.pods[key] = replace(pod, **done, lingers=self.sidecars)


FAULTS = ["crash", "interrupt", "quit", "delete", "vanish", "node", "mend", "job", "suspend", "resume", "forget"]
FAULTS += ["sidecars", "open", "close", "take back"]
STEPS = st.lists(
    st.tuples(st.sampled_from([*FAULTS, "wait", "wait", "wait"]), st.integers(0, 1), st.integers(0, 3)), max_size=40
)


@settings(max_examples=60)
@given(steps=STEPS, queue=st.sampled_from([None, "team"]))
def test_whatever_breaks_there_is_one_world_at_a_time_and_in_the_end_it_is_done(build, steps, queue):
    limit = {"limit": 1000, "backoff": {"initial": "1s", "max": "5s"}}
    cluster = Cluster(build, build.training(restart=limit, queue=queue))
    for fault, index, looks in steps:
        if fault != "wait":
            cluster.fault(fault, index)
        for _ in range(looks):
            cluster.reconcile()
        cluster.tick()
        cluster.reconcile()
    cluster.dead.clear()
    cluster.fault("resume", 0)
    cluster.fault("open", 0)
    for _ in range(40):
        cluster.reconcile()
        cluster.tick(10)
        cluster.finish()
    final = read_status(ArcticTrainingStatus, cluster.status)
    assert is_finished(final)
    assert final.state == "Succeeded"
    assert final.export.uri == "file:///export"


@settings(max_examples=40)
@given(steps=STEPS)
def test_planning_again_on_the_same_observation_does_nothing_new(build, steps):
    cluster = Cluster(build, build.training())
    for fault, index, _ in steps:
        if fault != "wait":
            cluster.fault(fault, index)
        cluster.tick()
        for _ in range(4):
            cluster.reconcile()
        before = (dict(cluster.jobs), dict(cluster.pods), json.dumps(cluster.status))
        plan = cluster.reconcile()
        assert plan.create == ()
        assert (dict(cluster.jobs), dict(cluster.pods), json.dumps(cluster.status)) == before


@given(failures=st.integers(0, 6), limit=st.integers(0, 4))
@settings(max_examples=20)
def test_failures_beyond_the_limit_end_the_training_and_interruptions_never_do(build, failures, limit):
    cluster = Cluster(build, build.training(restart={"limit": limit, "backoff": {"initial": "1s", "max": "1s"}}))
    for kind in ["interrupt"] * 5 + ["crash"] * failures:
        for _ in range(8):
            cluster.reconcile()
            cluster.tick(10)
        cluster.fault(kind, 0)
    for _ in range(3):
        cluster.reconcile()
        cluster.tick(1)
    final = read_status(ArcticTrainingStatus, cluster.status)
    assert is_finished(final) == (failures > limit)
    assert final.restarts == min(failures, limit + 1)
    assert len(cluster.raw) <= 6 + min(failures, limit + 1)


@pytest.mark.parametrize("reason", ["SourceEmpty", "InvalidSpec"])
def test_a_training_whose_worker_refuses_its_input_has_one_attempt_whatever_the_reason(build, reason):
    cluster = Cluster(build, build.training())
    cluster.reconcile()
    cluster.tick()
    word = build.report("refused", reason=reason, message="books.jsonl is empty")
    for key, pod in cluster.pods.items():
        cluster.pods[key] = replace(pod, phase="Failed", exit_code=64, exit_message=word, finished=cluster.now)
    for _ in range(8):
        cluster.reconcile()
        cluster.tick(60)
    final = read_status(ArcticTrainingStatus, cluster.status)
    assert (final.state, len(cluster.raw)) == ("Failed", 1)
    assert next(c for c in final.conditions if c.type == "Failed").reason == reason


def refused(build, reason, **fields):
    """Return the world of a training whose workers have refused what they were told."""
    cluster = Cluster(build, build.training(**fields))
    cluster.reconcile()
    cluster.tick()
    cluster.reconcile()
    refuse(cluster, reason)
    return cluster


def refuse(cluster, reason):
    word = cluster.build.report("refused", reason=reason, message="write the old value again")
    for key, pod in cluster.pods.items():
        if not pod.ended:
            cluster.pods[key] = replace(pod, phase="Failed", exit_code=64, exit_message=word, finished=cluster.now)


def pass_time(cluster, times=6):
    for _ in range(times):
        cluster.reconcile()
        cluster.tick(60)
    return read_status(ArcticTrainingStatus, cluster.status)


@pytest.mark.parametrize("reason", sorted(CORRECTABLE))
def test_a_refused_edit_waits_for_the_next_edit(build, reason):
    cluster = refused(build, reason, ttlAfterFinished="1s")
    for harmless in (cluster.training, replace(cluster.training, generation=2)):
        cluster.training = harmless
        status = pass_time(cluster)
        assert (status.state, status.completion_time, len(cluster.raw)) == ("Failed", None, 1)
        failed = condition_of(cluster.status, "Failed")
        assert (failed["status"], failed["reason"], failed["message"]) == ("True", reason, "write the old value again")
        assert cluster.reconcile().delete == ()
    cluster.fault("suspend", 0)
    assert pass_time(cluster).state == "Failed"
    cluster.fault("resume", 0)
    cluster.training = replace(cluster.training, generation=3, revision="r3")
    assert pass_time(cluster).state == "Starting"
    assert (len(cluster.raw), cluster.status["restarts"]) == (2, 0)
    assert condition_of(cluster.status, "Failed")["status"] == "False"
    refuse(cluster, reason)
    assert (pass_time(cluster).state, len(cluster.raw)) == ("Failed", 2)


def test_what_a_run_has_kept_is_not_lost_to_an_edit_that_is_refused(build):
    """A source that is misspelt in mid-run is bad input, and was right before."""
    cluster = Cluster(build, build.training())
    cluster.reconcile()
    cluster.tick()
    cluster.reconcile()
    kept = {"step": 1, "tokens": 400, "uri": "file:///c/1", "time": "2026-01-01T00:00:20Z"}
    cluster.status = cluster.status | {"lastCheckpoint": kept}
    refuse(cluster, "SourceNotFound")
    status = pass_time(cluster)
    assert (status.state, status.completion_time, len(cluster.raw)) == ("Failed", None, 1)
    assert condition_of(cluster.status, "Failed")["reason"] == "SourceNotFound"
    cluster.training = replace(cluster.training, generation=2, revision="r2")
    assert pass_time(cluster).state == "Starting"
    assert len(cluster.raw) == 2


def test_an_edit_that_comes_with_a_refusal_is_not_taken_for_what_was_refused(build):
    cluster = refused(build, "CheckpointMismatch")
    cluster.training = replace(cluster.training, generation=2, revision="r2")
    pass_time(cluster)
    assert len(cluster.raw) == 2


def test_an_upgrade_that_comes_with_a_refusal_is_not_taken_for_a_correction(build):
    cluster = refused(build, "CheckpointMismatch")
    cluster.training = replace(cluster.training, revision="computed-otherwise")
    assert (pass_time(cluster).state, len(cluster.raw)) == ("Failed", 1)


def test_a_deadline_ends_a_training_that_waits_for_an_edit(build):
    cluster = refused(build, "CheckpointMismatch", activeDeadline="10m")
    assert not is_finished(pass_time(cluster, 2))
    assert cluster.reconcile().requeue_after <= 600
    assert is_finished(pass_time(cluster, 12))
    assert condition_of(cluster.status, "Failed")["reason"] == "ActiveDeadlineExceeded"
    cluster.training = replace(cluster.training, generation=2, revision="r2")
    pass_time(cluster)
    assert len(cluster.raw) == 1


@pytest.mark.parametrize(("end", "reason"), [("Succeeded", "Succeeded"), ("Failed", "RestartLimitExceeded")])
def test_an_invalid_edit_and_its_correction_leave_an_end_what_it_was(build, end, reason):
    when = "2026-01-01T00:00:00Z"
    ended = {"type": end, "status": "True", "reason": reason, "message": "it did", "lastTransitionTime": when}
    status = {"attempt": 3, "completionTime": when, "attempts": [record(3, counted=True)], "conditions": [ended]}
    edited = invalid_status(build.training(status).status, "no such label", 2, build.seconds(60))
    assert condition_of(edited, "Degraded")["message"] == "no such label"
    corrected = build.training(edited, generation=3)
    plan = plan_training(corrected, TrainingSeen(), build.settings, build.seconds(9000))
    assert (plan.create, plan.status["state"], plan.status["completionTime"]) == ((), end, when)
    for status in (edited, plan.status):
        assert [c["type"] for c in status["conditions"]] == ALL_CONDITIONS
        assert ended.items() <= condition_of(status, end).items()


def test_a_specification_that_was_never_valid_starts_once_it_is_corrected(build):
    status = invalid_status(build.training().status, "no such label", 1, build.start)
    assert condition_of(status, "Failed")["status"] == "True"
    plan = plan_training(build.training(status, generation=2), TrainingSeen(), build.settings, build.seconds(60))
    assert len(plan.create) == 1
    assert condition(plan, "Failed")["status"] == "False"


def test_a_training_rests_at_suspend_at_and_goes_on_once_that_is_raised(build):
    kept = {"step": 3, "tokens": 1200, "uri": "file:///c/3", "time": "2026-01-01T00:00:59Z"}
    told = {"reason": "Suspended", "message": "suspended after step 3", "step": 3, "tokens": 1200, "checkpoint": kept}
    word = build.report("interrupted", **told)
    pods = [build.pod(i, phase="Failed", exit_code=75, finished=build.seconds(60), exit_message=word) for i in range(2)]
    seen = TrainingSeen(jobs=[replace(job(build), failed=True)], pods=pods)
    training = build.training({"attempt": 1, "startTime": "2026-01-01T00:00:00Z"}, suspendAt=1000)
    ended = plan_training(training, seen, build.settings, build.seconds(61))
    assert ended.status["state"] == "Suspended"
    assert [entry["reason"] for entry in ended.status["attempts"]] == ["Suspended"]
    assert ended.status["tokens"] == 1200
    rests = plan_training(build.training(ended.status, suspendAt=1000), seen, build.settings, build.seconds(62))
    assert (rests.create, rests.status["state"]) == ((), "Suspended")
    for more in ({"suspendAt": 2000}, {}):
        goes_on = plan_training(build.training(ended.status, **more), seen, build.settings, build.seconds(63))
        assert [made["metadata"]["name"] for made in goes_on.create] == ["tiny-0a1b2-a2"]


def test_figures_of_an_earlier_rest_do_not_pass_for_those_of_one_where_no_loss_was_a_finite_number(build):
    """JSON has no such numbers: they are left out of the report."""
    kept = {"step": 3, "tokens": 1200, "uri": "file:///c/3", "time": "2026-01-01T00:00:59Z"}
    told = {"reason": "Suspended", "step": 3, "tokens": 1200, "checkpoint": kept, "evaluation": {}}
    word = build.report("interrupted", **told)
    pods = [build.pod(i, phase="Failed", exit_code=75, finished=build.seconds(60), exit_message=word) for i in range(2)]
    seen = TrainingSeen(jobs=[replace(job(build), failed=True)], pods=pods)
    status = {"attempt": 1, "startTime": "2026-01-01T00:00:00Z", "evaluation": {"perplexity/general": "9.0000"}}
    training = build.training(status, suspendAt=1000)
    ended = plan_training(training, seen, build.settings, build.seconds(61)).status
    assert (ended["state"], ended["tokens"], ended.get("evaluation")) == ("Suspended", 1200, None)


def test_a_training_that_comes_to_suspend_at_and_can_not_keep_it_fails_and_is_tried_again(build):
    """What was trained since its last checkpoint is nowhere else."""
    kept = {"step": 1, "tokens": 400, "uri": "file:///c/1", "time": "2026-01-01T00:00:20Z"}
    word = build.report("failed", reason="StoreFull", message="no room", step=3, tokens=1200, checkpoint=kept)
    pods = [build.pod(i, phase="Failed", exit_code=1, finished=build.seconds(60), exit_message=word) for i in range(2)]
    seen = TrainingSeen(jobs=[replace(job(build), failed=True)], pods=pods)
    training = build.training({"attempt": 1, "startTime": "2026-01-01T00:00:00Z"}, suspendAt=1000)
    ended = plan_training(training, seen, build.settings, build.seconds(61))
    assert ended.status["state"] == "Restarting"
    assert [(entry["reason"], entry["counted"]) for entry in ended.status["attempts"]] == [("StoreFull", True)]
    again = plan_training(build.training(ended.status, suspendAt=1000), seen, build.settings, build.seconds(600))
    assert [made["metadata"]["name"] for made in again.create] == ["tiny-0a1b2-a2"]


def record(number, *, counted=False, start_time="2025-12-31T00:00:00Z", completion_time="2026-01-01T00:00:00Z"):
    return {
        "number": number,
        "reason": "WorkerFailed" if counted else "Interrupted",
        "counted": counted,
        "startTime": start_time,
        "completionTime": completion_time,
    }


def succeeded():
    when = "2026-01-01T00:00:00Z"
    return {"type": "Succeeded", "status": "True", "reason": "Succeeded", "message": "", "lastTransitionTime": when}


def job(build):
    return Job("tiny-0a1b2-a1", "job-1", 1, 1, "r1", created=build.start)


def running(build, seen):
    live = Live(seen, build.start, connected=True) if seen else None
    status = {"attempt": 1, "startTime": "2026-01-01T00:00:00Z"}
    pods = [build.pod(0, ip="10.0.0.1"), build.pod(1)]
    return build.training(status), TrainingSeen(jobs=[job(build)], pods=pods, live=live)


def observation(build, **fields):
    return TrainingObservation(
        **{"uid": build.uid, "epoch": 1, "phase": Phase.RUNNING, "message": "", "time": None} | fields
    )


def world_of(manifest):
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    (text,) = [item["value"] for item in container["env"] if item["name"] == "ARCTIC_WORLD"]
    return TrainingWorld.model_validate_json(text)


def test_a_world_of_512_pods_starts_and_is_reported_as_a_small_one_is(build):
    training = build.training(parallelism={"nodes": 512})
    plan = plan_training(training, TrainingSeen(), build.settings, build.start)
    [made] = plan.create
    assert (made["spec"]["completions"], made["spec"]["parallelism"]) == (512, 512)
    [small] = plan_training(build.training(), TrainingSeen(), build.settings, build.start).create
    assert len(json.dumps(made)) == len(json.dumps(small)) + 3 * len("12")  # completions, parallelism, the document
    status = {"attempt": 1, "startTime": "2026-01-01T00:00:00Z"}
    training = build.training(status, parallelism={"nodes": 512})
    pods = [build.pod(i) for i in range(512)]
    live = Live(observation(build), build.start, connected=True)
    seen = TrainingSeen(jobs=[job(build)], pods=pods, live=live)
    plan = plan_training(training, seen, build.settings, build.seconds(60))
    assert (plan.status["state"], condition(plan, "PodsScheduled")["status"]) == ("Running", "True")
    word = build.report(exportUri="file:///export")
    pods = [build.pod(i, phase="Succeeded", exit_code=0, exit_message=word) for i in range(512)]
    complete = replace(job(build), complete=True)
    plan = plan_training(training, TrainingSeen(jobs=[complete], pods=pods), build.settings, build.seconds(90))
    assert (plan.status["state"], plan.status["export"]["uri"]) == ("Succeeded", "file:///export")
    lost = [build.pod(i, **({"phase": "Failed", "exit_code": 1} if i == 300 else {})) for i in range(512)]
    plan = plan_training(training, TrainingSeen(jobs=[job(build)], pods=lost), build.settings, build.seconds(90))
    assert plan.status["attempts"][-1]["reason"] == "WorkerFailed"


@pytest.mark.parametrize("export", ["huggingface", "none"])
def test_the_world_document_is_what_the_worker_is_told(build, export):
    training = build.training(checkpoint={"volume": {"claimName": "store"}, "export": export})
    plan = plan_training(training, TrainingSeen(), build.settings, build.start)
    world = world_of(plan.create[0])
    assert world.spec.checkpoint.export == export
    assert world.first_host == "tiny-0a1b2-a1-0.tiny-0a1b2-a1.team.svc"
    assert world.run_folder == "/var/lib/arctic/store/team/tiny-0a1b2"
