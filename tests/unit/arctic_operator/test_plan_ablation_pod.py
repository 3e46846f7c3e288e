"""What an ablation has done by pods: what its swarm foretells, by the real pod's own code, and the report."""

import copy
import math
import random
from dataclasses import replace

import pytest
from ablation_world import IDENTITY, SETTINGS, START, World
from small_specs import TRAINING_SPEC

from arctic_ablation.study import VariantStudy
from arctic_ablation.swarm.draws import FORETOLD
from arctic_api.ablation import MAX_TRIALS, ArcticAblationSpec, ArcticAblationStatus, PointStatus, TrialStatus
from arctic_api.ablation_pod import AblationReport, AblationWorld
from arctic_api.rules import MAX_WORLD_BYTES
from arctic_api.world import WORLD_VARIABLE, ExitCode
from arctic_operator.observed import Node
from arctic_operator.plan.ablation_pod import plan_task
from arctic_operator.plan.conditions import UNREACHABLE_AFTER
from arctic_operator.trials import Ablation, AblationSeen, Trial
from arctic_workers.ablation.pod import done

SOURCES = [{"name": name, "category": name, "uri": f"file:///{name}"} for name in ("general", "sql")]
RUNS, CONFIRM = 8, 2


def spec(more=None, **mixture) -> ArcticAblationSpec:
    training = copy.deepcopy(TRAINING_SPEC) | {"data": {"sources": SOURCES}} | (more or {})
    [stage] = training["curriculum"]["stages"]
    training["curriculum"]["stages"] = [stage | {"mixture": {"general": 0.5, "sql": 0.5}}]
    search = {"runs": RUNS, "confirm": CONFIRM, "around": {"general": 3, "sql": 1}, **mixture}
    fields = {"training": training, "mixture": search, "objective": {"perplexity": {"sql": 1}}, "parallelism": 3}
    return ArcticAblationSpec.model_validate(fields)


def loss(training, tokens: int) -> float:
    [stage] = training["curriculum"]["stages"]
    return 2 - stage["mixture"]["sql"] + 0.01 * math.sin(training["seed"])


def do(world) -> AblationReport:
    """What the real pod does, but for the report: there is no store."""
    return AblationReport(outcome="succeeded") if world.task == "report" else done(world)


@pytest.fixture
def world():
    return World(spec(), loss, do)


def test_a_swarm_foretells_the_best_curriculum_and_it_is_put_to_the_test(world):
    world.live()
    assert (world.status["state"], world.status["best"]) == ("Succeeded", FORETOLD)
    assert world.status["planned"] == len(world.trainings) == RUNS + 3 * CONFIRM
    [half, whole] = world.status["foretold"]
    assert (half["name"], whole["name"]) == ("half", "whole")
    written = dict(part.split(":") for part in whole["mixtures"]["general"].split())
    [stage] = world.best["spec"]["curriculum"]["stages"]
    assert stage["mixture"] == {"general": 0.0} | {name: float(weight) for name, weight in written.items()}
    assert stage["mixture"]["sql"] > 0.75
    assert [each["name"] for each in whole["forecasts"]] == ["foretold", "by hand", "proportional"]
    low, high = map(float, whole["forecasts"][0]["interval"].split(" to "))
    assert low < float(whole["forecasts"][0]["objective"]) < high
    assert (world.jobs, world.jobs_made) == ({}, 3), "two Jobs have foretold, one has reported, and all are gone"


def test_what_was_foretold_is_not_foretold_again(world):
    world.live(until=lambda: bool(world.jobs))
    world.end()
    world.visit()
    told = world.status["foretold"]
    for _ in range(3):
        world.visit()
    assert (world.status["foretold"], world.jobs_made) == (told, 1)


def test_mixtures_of_which_somebody_has_made_none_are_foretold_anew_and_told_once(world):
    world.live(until=lambda: bool(world.status.get("foretold")))
    [half] = world.status["foretold"]
    told = dict(half["mixtures"])
    half["mixtures"]["general"] = "general:? sql:1"
    world.live(until=lambda: world.status.get("foretold") != [half])
    assert [(each["name"], each["mixtures"]) for each in world.status["foretold"]] == [("half", told)]


def test_a_status_that_was_lost_is_foretold_anew_and_nothing_is_trained_twice(world):
    world.live(until=lambda: world.status["state"] == "Reporting")
    trained = set(world.trainings)
    del world.status["foretold"]
    world.live()
    assert (world.status["state"], set(world.trainings)) == ("Succeeded", trained)


def test_the_pod_reads_the_trainings_by_the_store_and_takes_no_devices():
    template = {
        "deviceClaims": [{"name": "gpus", "templateName": "eight"}],
        "environment": [{"name": "A", "value": "b"}],
    }
    world = World(spec({"resources": {"limits": {"nvidia.com/gpu": 8}}, "template": template}), loss, do)
    world.live(until=lambda: bool(world.jobs))
    [job] = world.jobs.values()
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["command"][-2:] == ["-m", "arctic_workers.ablation"]
    assert container["resources"]["limits"].keys() == {"memory"}
    assert "resourceClaims" not in pod
    assert {"name": "A", "value": "b"} in container["env"]
    store = next(each["persistentVolumeClaim"] for each in pod["volumes"] if "persistentVolumeClaim" in each)
    assert store == {"claimName": "store", "readOnly": False}
    told = world.told()
    assert {name: word.uid5 for name, word in told.trials.items()} == {name: name[:5] for name in world.trainings}
    assert told.told == {}


def test_what_an_ablation_of_as_many_trainings_as_there_may_be_has_found_fits_into_what_its_pod_is_told():
    """Linux takes 128 KiB a variable."""
    values = [number / MAX_TRIALS for number in range(64)]
    grid = [{"field": f"optimizer.{field}", "values": values[:most]} for field, most in (("beta1", 16), ("beta2", 64))]
    fields = {"training": TRAINING_SPEC, "grid": grid, "objective": {"perplexity": {"general": 1}}}
    study = VariantStudy(IDENTITY.name, ArcticAblationSpec.model_validate(fields))
    ablation = Ablation(IDENTITY, 1, False, study, ArcticAblationStatus())
    rungs = [PointStatus(tokens=10**5 * 3**number, objective="") for number in range(4)]
    draw, known = random.Random(0), {}
    for run in study.all_runs({}):
        points = [rung.model_copy(update={"objective": f"{draw.random() * 9:.6f}"}) for rung in rungs]
        known[run.name] = TrialStatus(name=run.name, variant=run.variant, seed=0, state="Resting", points=points)
    assert len(known) == MAX_TRIALS
    trials = {name: Trial(name, name[-8:], None, "", 0, {}, "", deleting=False) for name in known}
    task = plan_task(ablation, AblationSeen(trials=trials), "report", known, SETTINGS, START)
    [container] = task.create[0]["spec"]["template"]["spec"]["containers"]
    [told] = [each["value"] for each in container["env"] if each["name"] == WORLD_VARIABLE]
    assert len(told) < MAX_WORLD_BYTES
    read = AblationWorld.model_validate_json(told).trials
    assert {name: word.points for name, word in read.items()} == {name: each.points for name, each in known.items()}
    assert {name: word.uid5 for name, word in read.items()} == {name: name[-8:-3] for name in known}


def test_as_many_changes_as_there_may_be_fit_into_what_a_pod_is_told_though_each_is_a_whole_curriculum():
    """Nothing bounds what a value may be, which is whatever the field that it is for takes."""
    [stage] = TRAINING_SPEC["curriculum"]["stages"]
    draw = random.Random(0)
    mixtures = [{f"source-{number:02}": round(draw.random(), 3) for number in range(48)} for _ in range(256)]
    changes = [
        {"name": f"c{number}", "set": [{"field": "curriculum.stages", "value": [stage | {"mixture": mixture}]}]}
        for number, mixture in enumerate(mixtures)
    ]
    changes[0] = {"name": "c0", "set": [{"field": "batch.microBatchSize", "value": None}]}
    fields = {"training": TRAINING_SPEC, "changes": changes, "objective": {"perplexity": {"general": 1}}}
    study = VariantStudy(IDENTITY.name, ArcticAblationSpec.model_validate(fields))
    ablation = Ablation(IDENTITY, 1, False, study, ArcticAblationStatus())
    task = plan_task(ablation, AblationSeen(trials={}), "report", {}, SETTINGS, START)
    [container] = task.create[0]["spec"]["template"]["spec"]["containers"]
    [told] = [each["value"] for each in container["env"] if each["name"] == WORLD_VARIABLE]
    assert len(ablation.spec.model_dump_json()) > 2 * MAX_WORLD_BYTES > 2 * len(told)
    assert AblationWorld.model_validate_json(told).spec.changes == ablation.spec.changes


@pytest.mark.parametrize(
    ("code", "report", "reason", "words"),
    [
        (
            ExitCode.BAD_INPUT,
            {"outcome": "refused", "reason": "TooFew", "message": "it takes 3"},
            "TooFew",
            "it takes 3",
        ),
        (0, {"outcome": "succeeded"}, "NothingForetold", "the same release"),
    ],
)
def test_what_can_not_be_foretold_ends_the_ablation_with_the_pods_own_words(world, code, report, reason, words):
    world.live(until=lambda: bool(world.jobs))
    world.end(code, AblationReport.model_validate(report))
    world.visit()
    assert world.status["state"] == "Failed"
    assert world.condition("Failed")["reason"] == reason
    assert words in world.condition("Failed")["message"]


def test_a_pod_that_can_not_start_is_told(world):
    world.live(until=lambda: bool(world.jobs))
    pod = world.pod()
    world.pods = {pod.uid: replace(pod, phase="Pending", node="", unschedulable="0/2 nodes are available")}
    world.seconds += 60
    world.visit()
    assert world.status["state"] == "Foretelling"
    assert "0/2 nodes are available" in world.condition("Degraded")["message"]


def test_a_pod_on_a_lost_node_is_replaced(world):
    world.live(until=lambda: bool(world.jobs))
    pod = world.pod()
    world.nodes = {"n0": Node("n0", False, world.now, False), "n1": Node("n1", True, world.now, False)}
    world.seconds += UNREACHABLE_AFTER.total_seconds() + 60
    plan = world.visit()
    assert [delete.uid for delete in plan.delete] == [pod.owner.uid]
    assert "node n0" in world.condition("Degraded")["message"]
    world.visit()
    assert world.jobs_made == 2


def test_an_edit_that_changes_the_swarm_has_it_foretold_anew(world):
    world.live(until=lambda: bool(world.jobs))
    world.end()
    world.visit()
    world.edit(spec(runs=10))
    world.visit()
    assert "foretold" not in world.status
    world.live()
    assert (world.status["state"], world.status["planned"]) == ("Succeeded", 10 + 3 * CONFIRM)
    assert len(world.trainings) == 10 + 3 * CONFIRM, "those that have no place any more are gone"


def test_at_the_end_a_pod_writes_the_report_and_the_status_says_where(world):
    world.live(until=lambda: world.status["state"] == "Reporting")
    told = world.told()
    assert (told.task, told.whole, set(told.told)) == ("report", True, {"half", "whole"})
    assert "folder" not in world.status
    world.end()
    world.visit()
    assert world.status["folder"] == told.folder == "/var/lib/arctic/store/team/rates-0a1b2"


def test_an_ablation_whose_report_can_not_be_written_has_its_winner_all_the_same(world):
    world.live(until=lambda: world.status["state"] == "Reporting")
    world.end(1, AblationReport(outcome="failed", message="no space left on device"))
    [job] = world.jobs.values()
    job["status"] = {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}
    world.visit()
    assert (world.status["state"], world.status["best"], world.best["kind"]) == (
        "Succeeded",
        FORETOLD,
        "ArcticTraining",
    )
    assert (world.condition("Degraded")["reason"], world.condition("Degraded")["message"]) == (
        "NoReport",
        "no space left on device",
    )
