"""What becomes of an evaluation, told by what is seen of its Job, its pods and what it evaluates."""

import json
from dataclasses import replace

import pytest

from arctic_api.common import BaseWeights
from arctic_api.world import EvaluationReport, EvaluationWorld, FigureReport, SuiteReport
from arctic_operator.evaluations import Awaited, EvaluationSeen, Target, compared_with, target_of
from arctic_operator.live import EvaluationObservation, Live, Phase
from arctic_operator.observed import Job, Node, Owner, Pod
from arctic_operator.plan.evaluation import plan_evaluation
from arctic_operator.plan.evaluation_status import invalid_status

FOLDER = "/var/lib/arctic/store/team/judged-0a1b2"
EXPORT = "/var/lib/arctic/store/team/tiny-fffff/export"
WEIGHTS = BaseWeights(training="tiny", folder=EXPORT, claim_name="store")
TARGET = Target("tiny", weights=WEIGHTS)
SCORE = FigureReport(name="strict match", value=0.5, low=0.25, high=0.75)
DONE = SuiteReport(name="gsm8k", state="Done", answered=4, judged=4, planned=4, figures=[SCORE])


@pytest.fixture
def evaluation(build):
    return build.evaluation


@pytest.fixture
def plan(build, evaluation):
    """Plan on what is seen."""

    def planned(subject=None, target=TARGET, **seen):
        return plan_evaluation(subject or evaluation(), EvaluationSeen(target, **seen), build.settings, build.start)

    return planned


@pytest.fixture
def job(build):
    return Job("judged-0a1b2-r1", "job-1", 0, 1, "r1", created=build.start)


@pytest.fixture
def pod(build):
    owner = Owner("Job", "judged-0a1b2-r1", "job-1")
    pod = Pod("judged-0", "pod-1", 0, "Running", build.start, owner=owner, node="n0", ip="10.0.0.1")
    return replace(pod, ready_since=build.start)


def ended(pod, code, **report):
    content = EvaluationReport.model_validate(report).model_dump_json(by_alias=True) if report else ""
    return replace(pod, phase="Failed" if code else "Succeeded", exit_code=code, exit_message=content)


def condition(plan, kind):
    found = next(each for each in plan.status["conditions"] if each["type"] == kind)
    return found["status"], found["reason"], found.get("message", "")


def world_of(made):
    (container,) = made["spec"]["template"]["spec"]["containers"]
    variables = {item["name"]: item.get("value") for item in container["env"]}
    return EvaluationWorld.model_validate_json(variables["ARCTIC_WORLD"])


def mounts_of(made):
    pod = made["spec"]["template"]["spec"]
    claims = {each["name"]: each.get("persistentVolumeClaim") or each.get("secret") for each in pod["volumes"]}
    return {mount["mountPath"]: claims[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}


def test_weights_are_evaluated_in_one_pod_that_kubernetes_tries_again(evaluation, plan):
    made = plan()
    (policy,), (job,) = made.apply, made.create
    assert (policy["kind"], made.needs_fresh, made.status["state"]) == ("NetworkPolicy", True, "Starting")
    assert job["metadata"]["name"] == "judged-0a1b2-r1"
    assert (job["spec"]["backoffLimit"], job["spec"]["completions"]) == (3, 1)
    assert [rule["action"] for rule in job["spec"]["podFailurePolicy"]["rules"]] == ["FailJob", "Ignore", "Ignore"]
    world = world_of(job)
    assert (world.weights_folder, world.url, world.folder, world.model) == (EXPORT, None, FOLDER, "tiny")
    assert world.spec.suites == evaluation().spec.suites
    assert mounts_of(job)["/var/lib/arctic/store"] == {"claimName": "store", "readOnly": False}
    assert made.status["folder"] == FOLDER
    assert [suite["state"] for suite in made.status["suites"]] == ["Waiting", "Waiting"]
    assert made.status["weights"]["folder"] == EXPORT


def test_weights_in_another_claim_are_read_there(plan):
    elsewhere = Target("tiny", weights=WEIGHTS.model_copy(update={"claim_name": "other"}))
    (job,) = plan(target=elsewhere).create
    assert world_of(job).weights_folder == "/var/lib/arctic/base/team/tiny-fffff/export"
    assert mounts_of(job)["/var/lib/arctic/base"] == {"claimName": "other", "readOnly": True}


def test_an_api_is_asked_with_the_key_of_its_secret(evaluation, plan):
    asked = {"endpoint": {"url": "https://models/v1", "model": "large"}, "credentials": {"secretName": "keys"}}
    subject = evaluation(model=asked)
    (job,) = plan(subject, target=target_of(subject, None, None)).create
    world = world_of(job)
    assert (world.url, world.model, world.weights_folder) == ("https://models/v1", "large", None)
    assert mounts_of(job)[world.credentials_folder]["secretName"] == "keys"


def test_what_is_not_there_yet_is_waited_for(plan):
    waits = plan(target=Awaited("WaitingForTraining", "waits for ArcticTraining tiny to export its weights"))
    assert (waits.create, waits.apply) == ((), ())
    assert waits.requeue_after
    assert waits.status["state"] == "WaitingForTraining"
    assert condition(waits, "Degraded") == (
        "False",
        "WaitingForTraining",
        "waits for ArcticTraining tiny to export its weights",
    )


def test_progress_is_told_while_the_pod_runs(evaluation, plan, job, pod):
    halfway = SuiteReport(name="spider", state="Running", answered=3, planned=9)
    subject = evaluation()
    live = Live(EvaluationObservation(subject.identity.uid, Phase.RUNNING, "", None, (DONE, halfway)), connected=True)
    running = plan(subject, jobs=[job], pods=[pod], live=live)
    assert (running.create, running.delete) == ((), ())
    assert [follow.host for follow in running.follow] == ["10.0.0.1"]
    assert running.status["state"] == "Running"
    first, second = running.status["suites"]
    assert first["figures"] == [{"name": "strict match", "value": "0.5000", "interval": "0.2500 to 0.7500"}]
    assert (second["state"], second["answered"], second["planned"]) == ("Running", 3, 9)


def test_progress_of_another_object_is_not_taken_for_ones_own(plan, job, pod):
    live = Live(EvaluationObservation("another", Phase.RUNNING, "", None, (DONE,)), connected=True)
    assert plan(jobs=[job], pods=[pod], live=live).status["suites"][0]["state"] == "Waiting"


def test_what_the_pod_says_last_is_the_result(evaluation, plan, job, pod):
    score = FigureReport(name="enterprise intelligence", value=0.123456, low=0.1, high=0.2)
    spider = SuiteReport(name="spider", state="Unfit", message="a gold query fails here")
    report = {"suites": [DONE, spider], "enterprise_intelligence": score, "message": "no mean"}
    over = plan(jobs=[job], pods=[ended(pod, 0, outcome="succeeded", **report)])
    assert over.status["state"] == "Succeeded"
    assert condition(over, "Succeeded") == ("True", "Succeeded", "no mean")
    assert over.status["enterpriseIntelligence"] == {"value": "0.1235", "interval": "0.1000 to 0.2000"}
    assert [suite["state"] for suite in over.status["suites"]] == ["Done", "Unfit"]
    assert over.status["suites"][1]["message"] == "a gold query fails here"
    after = plan(evaluation(over.status))
    assert (after.create, after.status) == ((), over.status)


def test_what_ended_stays_as_it_is_however_it_is_edited(evaluation, plan, job, pod):
    over = plan(jobs=[job], pods=[ended(pod, 0, outcome="succeeded", suites=[DONE])])
    edited = plan(evaluation(over.status, generation=2, retries=9))
    assert (edited.create, edited.status["state"], edited.status["observedGeneration"]) == ((), "Succeeded", 2)


def test_a_pod_whose_last_word_is_lost_has_its_results_in_the_store(plan, job):
    over = plan(jobs=[replace(job, complete=True)])
    assert over.needs_fresh, "the watch of pods may be behind"
    assert condition(over, "Succeeded")[2] == "the pod's last word is lost: what it found is in results.json"


def test_bad_input_fails_with_its_sentence_and_says_what_was_not_run(plan, job, pod):
    words = "spider: /suites/spider is not there"
    refused = ended(pod, 64, outcome="refused", reason="BadInput", message=words, suites=[DONE])
    over = plan(jobs=[job], pods=[refused])
    assert condition(over, "Failed") == ("True", "BadInput", words)
    assert [suite["state"] for suite in over.status["suites"]] == ["Done", "NotRun"]
    assert over.status["completionTime"]


def test_a_pod_that_failed_is_told_until_the_next_one_runs(plan, job, pod):
    failed = ended(pod, 1, outcome="failed", reason="EndpointError", message="nobody answers")
    between = plan(jobs=[job], pods=[failed])
    assert between.status["state"] == "Restarting"
    assert condition(between, "Degraded") == ("True", "Restarting", "nobody answers")
    again = replace(pod, name="judged-1", uid="pod-2", ip="10.0.0.2")
    running = plan(jobs=[job], pods=[failed, again])
    assert (running.status["state"], condition(running, "Degraded")[0]) == ("Running", "False")
    assert [follow.host for follow in running.follow] == ["10.0.0.2"]
    given_up = plan(jobs=[replace(job, failed=True, reason="BackoffLimitExceeded")], pods=[failed])
    assert condition(given_up, "Failed") == ("True", "EndpointError", "nobody answers")


def test_a_failed_one_goes_on_once_it_is_edited(evaluation, plan, job, pod):
    failed = ended(pod, 1, outcome="failed", reason="EndpointError", message="nobody answers")
    gave_up = replace(job, failed=True, reason="BackoffLimitExceeded")
    over = plan(jobs=[gave_up], pods=[failed])
    edited = plan(evaluation(over.status, generation=2, retries=9), jobs=[gave_up], pods=[failed])
    assert [made["metadata"]["name"] for made in edited.create] == ["judged-0a1b2-r2"]
    assert [delete.name for delete in edited.delete] == ["judged-0a1b2-r1"]
    assert edited.status["state"] == "Starting"
    assert "completionTime" not in edited.status


def test_an_edit_waits_for_the_earlier_pod_to_end(evaluation, plan, job, pod):
    edited = plan(evaluation(generation=2), jobs=[job], pods=[pod])
    assert (edited.create, [delete.name for delete in edited.delete]) == ((), ["judged-0a1b2-r1"])
    assert edited.status["state"] == "Restarting"


def test_a_job_that_somebody_deletes_is_made_again_once_it_is_gone(plan, job):
    going = plan(jobs=[replace(job, deleting=True)])
    assert (going.create, going.delete, going.status["state"]) == ((), (), "Restarting")
    assert len(plan().create) == 1


def test_an_upgrade_of_the_operator_is_no_edit(evaluation, plan, job, pod):
    upgraded = plan(replace(evaluation(), revision="other"), jobs=[job], pods=[pod])
    assert (upgraded.create, upgraded.delete, upgraded.status["state"]) == ((), (), "Running")


@pytest.fixture
def lost(build):
    """Nodes of which the first, where the pod is, has been silent for too long."""
    return {name: Node(name, name != "n0", build.seconds(-60), to_be_emptied=False) for name in ("n0", "n1")}


def test_a_pod_on_a_lost_node_is_given_up_with_its_job(plan, job, pod, lost):
    given_up = plan(jobs=[job], pods=[pod], nodes=lost)
    assert [(delete.kind, delete.name, delete.uid) for delete in given_up.delete] == [("Job", job.name, job.uid)]
    assert given_up.needs_fresh, "the watch of nodes may be behind"
    assert (given_up.create, given_up.follow, given_up.status["state"]) == ((), (), "Restarting")
    assert condition(given_up, "Degraded")[:2] == ("True", "NodeLost")
    assert condition(given_up, "Failed")[0] == "False"


def test_another_pod_follows_at_once_on_one_that_no_node_will_end(plan, job, pod, lost):
    going = replace(pod, delete_requested=pod.created)
    followed = plan(pods=[going], nodes=lost)
    assert [made["metadata"]["name"] for made in followed.create] == [job.name]
    again = plan(jobs=[replace(job, uid="job-2")], pods=[going], nodes=lost)
    assert (again.create, again.delete, again.status["state"]) == ((), (), "Starting"), "the lost pod is not its own"


def test_a_pod_that_ended_before_its_node_was_lost_is_kubernetes_to_replace(plan, job, pod, lost):
    failed = ended(pod, 1, outcome="failed", reason="EndpointError", message="nobody answers")
    between = plan(jobs=[job], pods=[failed], nodes=lost)
    assert (between.delete, condition(between, "Degraded")[1]) == ((), "Restarting")


def test_a_job_that_can_not_make_its_pod_is_asked_why(plan, build, job):
    late = replace(job, created=build.seconds(-60))
    assert plan(jobs=[late]).short == (late,)
    told = plan(jobs=[late], refusals={job.name: "exceeded quota"})
    assert "exceeded quota" in condition(told, "Degraded")[2]


def compared(**other):
    """Another evaluation, done if nothing else is said."""
    status = {"folder": "/store/team/first", "conditions": [{"type": "Succeeded", "status": "True"}]}
    return {"spec": {"results": {"claimName": "store"}}, "status": status} | other


def test_others_are_shown_beside_it_once_they_have_succeeded(plan, evaluation):
    subject = evaluation(compare=["first"])
    beside = compared_with(subject, {"first": compared()})
    (job,) = plan(subject, compared=beside).create
    assert world_of(job).compared == ["/store/team/first"]
    waits = plan(subject, compared=compared_with(subject, {"first": compared(status={})}))
    assert (waits.create, waits.status["state"]) == ((), "WaitingForEvaluation")
    assert condition(waits, "Degraded")[2] == "waits for ArcticEvaluation first to succeed"


@pytest.mark.parametrize(
    ("other", "reason"),
    [(None, "NoSuchEvaluation"), (compared(spec={"results": {"claimName": "other"}}), "InAnotherClaim")],
)
def test_others_that_can_not_be_shown_are_told(plan, evaluation, other, reason):
    subject = evaluation(compare=["first"])
    waits = plan(subject, compared=compared_with(subject, {"first": other}))
    assert condition(waits, "Degraded")[:2] == ("True", reason)


TRAINING = {
    "metadata": {"name": "tiny", "namespace": "team"},
    "spec": {
        "curriculum": {"stages": [{"name": "general"}, {"name": "code"}]},
        "checkpoint": {"volume": {"claimName": "store"}, "export": "none"},
    },
    "status": {
        "stages": [
            {"name": "general", "tokens": 700, "checkpoint": "file:///store/step-7"},
            {"name": "code", "tokens": 200, "checkpoint": "file:///store/step-9"},
        ],
        "lastCheckpoint": {"step": 7, "tokens": 700},
    },
}


@pytest.mark.parametrize(
    ("stage", "training", "expected"),
    [
        ("general", TRAINING, "/store/step-7"),
        ("code", TRAINING, None),
        ("late", TRAINING, "NoSuchStage"),
        ("code", None, "NoSuchTraining"),
        (None, TRAINING, "BaseExportsNothing"),
    ],
)
def test_a_stage_is_evaluated_from_its_end_on(evaluation, stage, training, expected):
    model = {"training": "tiny"} | ({"stage": stage} if stage else {})
    found = target_of(evaluation(model=model), training, None)
    if isinstance(found, Target):
        assert (found.name, found.weights.folder, found.weights.claim_name) == ("tiny-general", expected, "store")
    else:
        assert (found.lack.reason if found.lack else None) == expected


def test_weights_outlive_the_training_that_made_them(evaluation):
    before = json.loads(WEIGHTS.model_dump_json(by_alias=True))
    assert target_of(evaluation({"weights": before}), None, None) == TARGET


@pytest.mark.parametrize(
    ("available", "state", "autoscaling", "asked"),
    [("True", "Ready", {}, True), ("False", "Starting", {}, False), ("False", "Idle", {"min": 0}, True)],
)
def test_a_service_is_asked_once_it_answers_or_would_wake(evaluation, available, state, autoscaling, asked):
    service = {
        "spec": {"model": {"servedName": "Arctic"}, "autoscaling": autoscaling},
        "status": {
            "url": "http://tiny.team.svc:8000",
            "state": state,
            "conditions": [{"type": "Available", "status": available}],
        },
    }
    found = target_of(evaluation(model={"service": "tiny"}), None, service)
    assert (found == Target("Arctic", url="http://tiny.team.svc:8000/v1")) == asked


def test_what_an_operator_could_not_read_goes_on_with_one_that_can(build, evaluation, plan, job, pod):
    """As one of another release, before an upgrade: a field that has a default by then is in all objects."""
    first = invalid_status(evaluation().status, "spec.later: unknown field", 1, build.start)
    assert plan(evaluation(first)).create
    running = plan(jobs=[job], pods=[pod]).status
    unread = invalid_status(evaluation(running).status, "spec.later: unknown field", 1, build.start)
    assert plan(evaluation(unread), jobs=[job], pods=[pod]).status["state"] == "Running"


def test_one_that_had_ended_when_an_operator_could_not_read_it_has_ended_still(build, evaluation, plan, job, pod):
    done = plan(jobs=[job], pods=[ended(pod, 0, outcome="succeeded", suites=[DONE])]).status
    unread = invalid_status(evaluation(done).status, "spec.later: unknown field", 1, build.start)
    read = plan(evaluation(unread))
    assert (read.create, read.status["state"], read.status["suites"]) == ((), "Succeeded", done["suites"])
    assert [condition(read, kind)[0] for kind in ("Succeeded", "Failed", "Degraded")] == ["True", "False", "False"]
