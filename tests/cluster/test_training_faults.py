"""A training that is hit again and again, in processes and in a cluster, ends with the bits of one left alone."""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_training_faults import ClusterFaults
from objects import Objects
from training_faults import Campaign, LocalRun, same_end, small_disk, small_training

from arctic_cluster import Cluster
from arctic_cluster.paths import CORPUS, STORE

pytestmark = pytest.mark.timeout(1500)

STEPS, EVERY = 160, 20
FAULTS = 4
Undisturbed = tuple[dict[str, Any], Path]


@pytest.fixture(scope="module")
def text(operator: Cluster) -> Iterator[str]:
    """A folder of the corpus, as pods see it: what is trained on."""
    folder = f"faults-{uuid.uuid4().hex[:8]}"
    (operator.volumes / CORPUS / folder).mkdir()
    yield folder
    shutil.rmtree(operator.volumes / CORPUS / folder)


@pytest.fixture(scope="module")
def alone(operator: Cluster, text: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    """The manifest, and the folder of a run of it that nothing befell."""
    place = tmp_path_factory.mktemp("alone")
    manifest = small_training(operator.volumes / CORPUS, text, STEPS, EVERY)
    run = LocalRun(manifest, volumes_in(place, operator), place)
    try:
        run.begin()
        run.finish()
        assert run.folder is not None
        yield manifest, run.folder
    finally:
        run.end()


def volumes_in(place: Path, operator: Cluster) -> Path:
    volumes = place / "volumes"
    (volumes / STORE).mkdir(parents=True)
    (volumes / CORPUS).symlink_to(operator.volumes / CORPUS)
    return volumes


def test_local_processes_that_are_hit_end_with_the_same_bits(
    alone: Undisturbed, operator: Cluster, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    manifest, undisturbed = alone
    (tmp_path / "volumes").mkdir()
    with small_disk(tmp_path / "volumes", "256m") as disk:
        run = LocalRun(manifest, volumes_in(tmp_path, operator), tmp_path)
        try:
            run.begin()
            list(Campaign(run, pytestconfig.getoption("--seed"), STEPS // 2, disk).inflict(FAULTS))
            run.finish()
            assert run.folder is not None
            assert same_end(undisturbed, run.folder)
        finally:
            run.end()


def test_a_training_whose_pods_operator_and_api_server_are_hit_ends_with_the_same_bits(
    alone: Undisturbed, operator: Cluster, namespace: str
) -> None:
    manifest, undisturbed = alone
    objects = Objects(operator, namespace)
    ClusterFaults(objects, manifest).inflict()
    status = objects.state("arctictraining", manifest["metadata"]["name"], "Succeeded", limit=300)
    folder = operator.volumes / STORE / status["export"]["uri"].removeprefix("file:///var/lib/arctic/store/")
    try:
        assert same_end(undisturbed, folder.parent)
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)
