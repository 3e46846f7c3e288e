"""A training that is hit again and again, in processes and in a cluster, ends with the bits of one left alone."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster_training_faults import ClusterFaults
from objects import Objects
from training_faults import Campaign, LocalRun, same_end, small_disk, small_training

from arctic_cluster import Cluster
from arctic_cluster.paths import CORPUS, STORE

pytestmark = pytest.mark.timeout(1500)

STEPS, EVERY, FAULTS = 300, 20, 4
# Its status says how far it is every 10 s: it must not be done before it has been hit three times.
STEPS_IN_A_CLUSTER, TOKENS_IN_A_CLUSTER = 1000, 4096


@pytest.fixture(scope="module")
def text(operator: Cluster) -> Iterator[str]:
    """A folder of the corpus, as pods see it: what is trained on."""
    folder = f"faults-{uuid.uuid4().hex[:8]}"
    (operator.volumes / CORPUS / folder).mkdir()
    yield folder
    shutil.rmtree(operator.volumes / CORPUS / folder)


@contextmanager
def finished(manifest: dict[str, Any], operator: Cluster, place: Path) -> Iterator[Path]:
    """The folder of a run that nothing befell."""
    run = LocalRun(manifest, volumes_in(place, operator), place)
    try:
        run.begin()
        run.finish()
        assert run.folder is not None
        yield run.folder
    finally:
        run.end()


def volumes_in(place: Path, operator: Cluster) -> Path:
    volumes = place / "volumes"
    (volumes / STORE).mkdir(parents=True)
    (volumes / CORPUS).symlink_to(operator.volumes / CORPUS)
    return volumes


def test_local_processes_that_are_hit_end_with_the_same_bits(
    text: str, operator: Cluster, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    manifest = small_training(operator.volumes / CORPUS, f"{text}/processes", STEPS, EVERY)
    disturbed = tmp_path / "disturbed"
    (disturbed / "volumes").mkdir(parents=True)
    with (
        finished(manifest, operator, tmp_path) as undisturbed,
        small_disk(disturbed / "volumes", "256m") as disk,
    ):
        run = LocalRun(manifest, volumes_in(disturbed, operator), disturbed)
        try:
            run.begin()
            list(Campaign(run, pytestconfig.getoption("--seed"), STEPS // 2, disk).inflict(FAULTS))
            run.finish()
            assert run.folder is not None
            assert same_end(undisturbed, run.folder)
        finally:
            run.end()


def test_a_training_whose_pods_operator_and_api_server_are_hit_ends_with_the_same_bits(
    text: str, operator: Cluster, namespace: str, tmp_path: Path
) -> None:
    corpus = operator.volumes / CORPUS
    manifest = small_training(corpus, f"{text}/cluster", STEPS_IN_A_CLUSTER, EVERY, TOKENS_IN_A_CLUSTER)
    objects = Objects(operator, namespace)
    ClusterFaults(objects, manifest).inflict()
    status = objects.state("arctictraining", manifest["metadata"]["name"], "Succeeded", limit=300)
    folder = operator.volumes / STORE / status["export"]["uri"].removeprefix("file:///var/lib/arctic/store/")
    try:
        with finished(manifest, operator, tmp_path) as undisturbed:
            assert same_end(undisturbed, folder.parent)
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)
