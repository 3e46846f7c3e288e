"""A training of local processes that is hit again and again ends with the bits of one that is left alone.

It needs no cluster, but root for a disk of its own, and more time than a unit test may take.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from training_faults import CHEAP, Campaign, LocalRun, same_end, small_disk, small_training

from arctic_cluster.paths import CORPUS, STORE

STEPS, EVERY = 300, 20


@contextmanager
def running(manifest: dict[str, Any], volumes: Path, place: Path) -> Iterator[LocalRun]:
    """A run that has made its first step; nothing of it is left afterwards."""
    (volumes / STORE).mkdir(parents=True)
    (volumes / CORPUS).symlink_to(place.parent / CORPUS)
    run = LocalRun(manifest, volumes, place)
    try:
        run.begin()
        yield run
    finally:
        run.end()


@pytest.mark.timeout(1200)
def test_a_training_that_is_hit_by_each_kind_of_fault_ends_with_the_same_bits(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    manifest = small_training(tmp_path / CORPUS, "text", STEPS, EVERY)
    alone, disturbed = tmp_path / "alone", tmp_path / "disturbed"
    for place in (alone, disturbed):
        (place / "volumes").mkdir(parents=True)
    with (
        running(manifest, alone / "volumes", alone) as undisturbed,
        small_disk(disturbed / "volumes", "256m") as disk,
    ):
        undisturbed.finish()
        with running(manifest, disturbed / "volumes", disturbed) as hit:
            campaign = Campaign(hit, pytestconfig.getoption("--seed"), STEPS // 2, disk, only=CHEAP)
            faults = list(campaign.inflict(len(CHEAP)))
            assert {fault.kind for fault in faults} == set(CHEAP)
            hit.finish()
            assert undisturbed.folder is not None
            assert hit.folder is not None
            assert same_end(undisturbed.folder, hit.folder), faults
