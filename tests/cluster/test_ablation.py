"""An ablation on the real local cluster: twelve small trainings, a planted answer, and an operator that is killed."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from objects import Objects

from arctic_cluster import Cluster
from arctic_cluster.manifests import SYSTEM_NAMESPACE
from arctic_cluster.paths import CORPUS, STORE
from benchmarks.ablation import MIXTURES, STEPS, TOKENS_PER_STEP, halved
from benchmarks.planted import TARGET, write

pytestmark = pytest.mark.timeout(900)

MOUNTED = Path("/var/lib/arctic/corpus")
FOLDER = "planted"


@pytest.fixture
def objects(operator: Cluster, namespace: str) -> Iterator[Objects]:
    """A namespace with the planted text in its claim."""
    text = operator.volumes / CORPUS / FOLDER
    shutil.rmtree(text, ignore_errors=True)
    write(text)
    yield Objects(operator, namespace)
    shutil.rmtree(text)
    shutil.rmtree(operator.volumes / STORE / namespace, ignore_errors=True)


def test_the_planted_mixture_is_found_in_half_the_tokens_though_the_operator_is_killed(objects: Objects) -> None:
    manifest = halved(MOUNTED / FOLDER)
    training = manifest["spec"]["training"]
    training["template"] = {"volumes": [{"claimName": CORPUS, "mountPath": str(MOUNTED)}]}
    objects.apply(manifest)

    def judged() -> list[dict[str, Any]]:
        return [trial for trial in objects.status("arcticablation", "halved").get("trials", ()) if trial.get("points")]

    objects.eventually("some trainings have come to a rung", lambda: len(judged()) >= 4, limit=300)
    before = {trial["name"]: trial["points"] for trial in judged()}
    operators = ("delete", "pod", "-l", "app.kubernetes.io/name=arctic-operator", "--force", "--grace-period=0")
    objects.cluster.kubectl("-n", SYSTEM_NAMESPACE, *operators)
    status = objects.state("arcticablation", "halved", "Succeeded", limit=500)
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
