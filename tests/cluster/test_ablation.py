"""Ablations on the real local cluster: small trainings, planted answers, an operator that is killed, and a swarm."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ablation_by_suites import BETTER, STEP, by_suites
from objects import Objects

from arctic_ablation.swarm.draws import FORETOLD
from arctic_cluster import Cluster
from arctic_cluster.manifests import SYSTEM_NAMESPACE
from arctic_cluster.paths import CORPUS, STORE
from benchmarks.ablation import MIXTURES, STEPS, TOKENS_PER_STEP, halved, searched
from benchmarks.planted import TARGET, write

pytestmark = pytest.mark.timeout(1800)

MOUNTED = Path("/var/lib/arctic/corpus")
FOLDER = "planted"
RUNS = 8
"""Of the swarm: the least that it may have."""


@pytest.fixture
def objects(operator: Cluster, namespace: str) -> Iterator[Objects]:
    """A namespace with the planted text in its claim."""
    text = operator.volumes / CORPUS / FOLDER
    shutil.rmtree(text, ignore_errors=True)
    write(text)
    yield Objects(operator, namespace)
    shutil.rmtree(text)
    shutil.rmtree(operator.volumes / STORE / namespace, ignore_errors=True)


def mounted(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return an ablation whose trainings have the corpus's claim."""
    manifest["spec"]["training"]["template"] = {"volumes": [{"claimName": CORPUS, "mountPath": str(MOUNTED)}]}
    return manifest


def test_the_planted_mixture_is_found_in_half_the_tokens_though_the_operator_is_killed(objects: Objects) -> None:
    objects.apply(mounted(halved(MOUNTED / FOLDER)))

    def judged() -> list[dict[str, Any]]:
        return [trial for trial in objects.status("arcticablation", "halved").get("trials", ()) if trial.get("points")]

    objects.eventually("some trainings have come to a rung", lambda: len(judged()) >= 4, limit=600)
    before = {trial["name"]: trial["points"] for trial in judged()}
    operators = ("delete", "pod", "-l", "app.kubernetes.io/name=arctic-operator", "--force", "--grace-period=0")
    objects.cluster.kubectl("-n", SYSTEM_NAMESPACE, *operators)
    status = objects.state("arcticablation", "halved", "Succeeded", limit=900)
    assert status["ranking"][0]["name"] == status["best"]
    assert status["best"] == f"mixture={' '.join(f'{name}:{weight}' for name, weight in TARGET.items())}"
    config = objects.get("configmap", status["bestConfigMap"])
    best = json.loads(config["data"]["training.json"])
    assert best["spec"]["curriculum"]["stages"][0]["mixture"] == TARGET
    objects.kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(best))
    trials = {trial["name"]: trial for trial in status["trials"]}
    assert len(trials) == len(MIXTURES)
    assert status["tokens"] <= len(MIXTURES) * STEPS * TOKENS_PER_STEP / 2
    for name, points in before.items():
        assert trials[name]["points"][: len(points)] == points, "what was found is not found again"


def test_a_swarm_is_trained_and_what_it_foretells_is_put_to_the_test(objects: Objects) -> None:
    manifest = mounted(searched(MOUNTED / FOLDER, RUNS))
    manifest["spec"]["mixture"]["confirm"] = 1
    objects.apply(manifest)
    status = objects.state("arcticablation", "searched", "Succeeded", limit=900)
    assert status["planned"] == len(status["trials"]) == RUNS + 3
    assert {trial["state"] for trial in status["trials"]} == {"Done"}
    half, whole = status["foretold"]
    assert set(whole["mixtures"]) == {"general", "enterprise", "reasoning"}
    assert half["digest"] == whole["digest"]
    assert {rank["name"] for rank in status["ranking"]} == {each["name"] for each in whole["forecasts"]}
    tested = next(trial for trial in status["trials"] if trial["variant"] == FORETOLD)
    [stage, *_] = objects.get("arctictraining", tested["name"])["spec"]["curriculum"]["stages"]
    trained = " ".join(f"{name}:{weight:g}" for name, weight in stage["mixture"].items() if weight)
    assert trained == whole["mixtures"][stage["name"]], "what was foretold is what was trained"
    objects.eventually("the Jobs are gone", lambda: objects.labelled("jobs", "arctic.dev/name=searched") == [])


def test_suites_judge_trainings_where_they_rest_and_the_best_goes_on(objects: Objects) -> None:
    text = objects.cluster.volumes / CORPUS / "judged-ablation"
    shutil.rmtree(text, ignore_errors=True)
    manifest = mounted(by_suites(text, MOUNTED / text.name))
    manifest["spec"] |= {"halving": {"first": 5 * STEP, "factor": 2}, "parallelism": 2}
    objects.apply(manifest)
    status = objects.state("arcticablation", "judged", "Succeeded", limit=900)
    assert [rank["name"] for rank in status["ranking"]] == [BETTER, "base"]
    points = {trial["variant"]: trial["points"] for trial in status["trials"]}
    assert [(point["tokens"], float(point["objective"])) for point in points["base"]] == [(5 * STEP, 0)]
    assert [(point["tokens"], float(point["objective"])) for point in points[BETTER]] == [(5 * STEP, 1), (8 * STEP, 1)]
    for point in (*points["base"], *points[BETTER]):
        [suite] = objects.state("aev", point["evaluation"], "Succeeded")["suites"]
        assert float(suite["figures"][0]["value"]) == float(point["objective"])
    shutil.rmtree(text)
