"""The pod of an ablation, as a process of its own, on folders as trainings leave them."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from ablation_world import IDENTITY
from small_specs import TRAINING_SPEC

from arctic_ablation.study import Run, VariantStudy
from arctic_ablation.swarm.study import SwarmStudy
from arctic_api.ablation import AblationTask, ArcticAblationSpec, ForetoldStatus, PointStatus
from arctic_api.ablation_pod import AblationReport, AblationWorld, TrialWord
from arctic_api.world import WORLD_VARIABLE, ExitCode, Ports, run_folder
from arctic_workers.ablation.pod import fitting
from arctic_workers.control.ports import free_ports

pytestmark = pytest.mark.processes

UID5 = "fffff"
CHANGE = {"name": "more", "set": [{"field": "optimizer.weightDecay", "value": 0.5}]}
SHARES = (0.25, 0.5, 0.75, 1.0)


def spec(**fields) -> ArcticAblationSpec:
    sources = [{"name": name, "category": name, "uri": f"file:///{name}"} for name in ("general", "sql")]
    [stage] = TRAINING_SPEC["curriculum"]["stages"]
    curriculum = {"stages": [stage | {"mixture": {"general": 0.5, "sql": 0.5}}]}
    training = TRAINING_SPEC | {"data": {"sources": sources}, "curriculum": curriculum}
    return ArcticAblationSpec.model_validate({"training": training, "objective": {"perplexity": {"sql": 1}}, **fields})


def trained(store: Path, run: Run) -> TrialWord:
    """Leave what a training leaves that has come to its end; the curve alone says how it came there."""
    [stage] = run.training["curriculum"]["stages"]
    losses = [3 - stage["mixture"]["sql"] * share - share for share in SHARES]
    folder = Path(run_folder(str(store), IDENTITY.namespace, run.name, UID5)) / "evaluation"
    folder.mkdir(parents=True)
    lines = [
        {"step": step, "tokens": round(share * run.total), "figures": {"perplexity/sql": math.exp(loss)}}
        for step, (share, loss) in enumerate(zip(SHARES, losses, strict=True))
    ]
    (folder / "curve.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return TrialWord(uid5=UID5, points=[PointStatus(tokens=run.total, objective=str(losses[-1]))])


def be_the_pod(
    place: Path, made_of: ArcticAblationSpec, task: AblationTask, trials: Mapping[str, TrialWord], **more
) -> tuple[int, AblationReport]:
    [metrics] = free_ports(1)
    world = AblationWorld(
        namespace=IDENTITY.namespace,
        name=IDENTITY.name,
        uid=IDENTITY.uid,
        ports=Ports(metrics=metrics),
        tls_folder=None,
        termination_message=str(place / "word.json"),
        spec=made_of,
        task=task,
        trials=dict(trials),
        store=str(place),
        folder=run_folder(str(place), IDENTITY.namespace, IDENTITY.name, IDENTITY.uid),
        **more,
    )
    environment = os.environ | {WORLD_VARIABLE: world.model_dump_json(by_alias=True)}
    ended = subprocess.run([sys.executable, "-m", "arctic_workers.ablation"], env=environment, check=False)
    return ended.returncode, AblationReport.model_validate_json((place / "word.json").read_text())


def test_the_curves_of_a_swarm_say_what_its_best_mixture_is(tmp_path):
    made_of = spec(mixture={"runs": 8})
    study = SwarmStudy(IDENTITY.name, made_of, told={})
    trials = {run.name: trained(tmp_path, run) for run, _ in study.first}
    code, report = be_the_pod(tmp_path, made_of, "half", trials)
    assert (code, report.outcome) == (ExitCode.DONE, "succeeded")
    assert report.foretold is not None
    assert (report.foretold.name, report.foretold.digest) == ("half", study.digest)
    best = study.space.read(report.foretold.mixtures)
    assert best is not None
    assert best[0, 1] > 0.5, "more of sql is better"
    assert [each.name for each in report.foretold.forecasts] == ["foretold", "by hand", "proportional"]


def test_a_swarm_of_which_too_few_were_trained_is_refused_with_a_sentence(tmp_path):
    made_of = spec(mixture={"runs": 8})
    study = SwarmStudy(IDENTITY.name, made_of, told={})
    trials = {run.name: TrialWord(failed="the loss is nan") for run, _ in study.first}
    code, report = be_the_pod(tmp_path, made_of, "half", trials)
    assert (code, report.reason) == (ExitCode.BAD_INPUT, "TooFew")
    assert "it takes 3" in report.message


@pytest.mark.parametrize("whole", [True, False])
def test_the_report_has_the_whole_curves_and_the_winner(tmp_path, whole):
    made_of = spec(changes=[CHANGE])
    [base, more] = VariantStudy(IDENTITY.name, made_of).all_runs({})
    trials = {base.name: trained(tmp_path, base), more.name: TrialWord(failed="the loss is nan")}
    code, report = be_the_pod(tmp_path, made_of, "report", trials, whole=whole)
    assert (code, report.outcome) == (ExitCode.DONE, "succeeded")
    folder = Path(run_folder(str(tmp_path), IDENTITY.namespace, IDENTITY.name, IDENTITY.uid))
    results = json.loads((folder / "results.json").read_text())
    assert results["whole"] == whole
    assert [tokens for tokens, _ in results["curves"]["base, seed 0"]] == [round(each * base.total) for each in SHARES]
    assert results["failed"] == {more.name: "the loss is nan"}
    assert "the loss is nan" in (folder / "report.html").read_text()
    assert "kind: ArcticTraining" in (folder / "best.yaml").read_text()


def test_mixtures_that_a_pod_can_not_tell_whole_are_refused_with_what_to_write():
    mixtures = {f"stage-{number}": "source:0.5 " * 64 for number in range(16)}
    foretold = ForetoldStatus(name="half", digest="0", mixtures=mixtures, forecasts=[])
    report = fitting(AblationReport(outcome="succeeded", foretold=foretold))
    assert (report.outcome, report.reason) == ("refused", "TooManySources")
    assert report.message.endswith("of 4096 that a pod can tell: write fewer sources, or stages")
    few = AblationReport(outcome="succeeded", foretold=foretold.model_copy(update={"mixtures": {"one": "source:1"}}))
    assert fitting(few) == few
    odd = AblationReport(outcome="failed", message=os.fsdecode(b"/store/donn\xe9es"))
    assert fitting(odd).message == r"/store/donn\udce9es"


def test_what_suites_have_found_at_rungs_is_the_curve_of_a_training(tmp_path):
    data = [{"name": "ifeval", "uri": "file:///ifeval.jsonl"}]
    training = spec(changes=[CHANGE]).training.wire() | {"evaluation": {"suites": ["ifeval"], "data": data}}
    objective = {"suites": {"ifeval": 1}}
    made_of = spec(training=training, objective=objective, halving={"first": 8192}, changes=[CHANGE])
    [base, more] = VariantStudy(IDENTITY.name, made_of).all_runs({})
    trained(tmp_path, base)
    rests = [PointStatus(tokens=tokens, objective=str(value)) for tokens, value in ((8192, 0.25), (base.total, 0.5))]
    trials = {base.name: TrialWord(uid5=UID5, points=rests), more.name: TrialWord(uid5=UID5, points=rests[:1])}
    code, _ = be_the_pod(tmp_path, made_of, "report", trials)
    assert code == ExitCode.DONE
    folder = Path(run_folder(str(tmp_path), IDENTITY.namespace, IDENTITY.name, IDENTITY.uid))
    results = json.loads((folder / "results.json").read_text())
    assert results["curves"]["base, seed 0"] == [[8192, 0.25], [base.total, 0.5]]
    assert (results["unit"], results["more is better"], results["scaling"]) == ("share of right answers", True, None)
    assert "More is better" in (folder / "report.html").read_text()
