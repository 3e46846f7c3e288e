"""A training that is killed again and again: does it finish, with the same weights, and what does each fault cost?

A small Arctic is trained twice as two pods of local processes: once left alone, once with faults at moments that a seed
decides. Killed are ranks, rank 0, pods, nodes, and all at once; a rank is stopped; the newest checkpoint is truncated;
the disk is full for a while (on a file system of its own, for which this needs root). What a fault costs is the time
until the run is past the step that it had reached. A checkpoint is written every 20 steps. Goodput is the time that the
run takes when it is left alone, over what it took. Then, as root, the same is done in a local cluster with what local
processes don't have: its operator and its API server. How long ranks wait for checkpoints is measured with the
example's model and batch, whose steps are larger.
"""

import math
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import geteuid
from pathlib import Path
from typing import Any

from cluster_training_faults import ClusterTraining
from objects import Objects, example
from training_faults import Campaign, Fault, LocalRun, same_end, small_disk, small_training

from arctic_cli.demo import install_operator
from arctic_cluster import Cluster
from arctic_cluster.manifests import restricted_namespace
from arctic_cluster.paths import CORPUS, STORE
from benchmarks.form import arguments, finish, note, print_table, wait_for_quiet

FAULTS, QUICK = 20, 4
SEED = 1
CHECKPOINT_STEPS = 20
STEPS, QUICK_STEPS = 600, 150
STALL_STEPS = 45
"""Two checkpoints, and some steps after each."""
STALL = "arctic_training_checkpoint_stall_seconds_total"
FAULTS_OF_STEPS = 0.7
"""Share of the run over which the faults are spread: some wait for a checkpoint, and a run must not end before them."""
STEPS_IN_A_CLUSTER, TOKENS_IN_A_CLUSTER = 400, 4096
"""Its status says how far a training is every 10 s: it must not be done before it has been hit by all there is."""
NAMESPACE = "faults"
DISK = "256m"
"""Room for the checkpoints that are kept, one that is written, tokens and export; whole copies fit many times."""


def stalled_manifest(corpus: Path) -> dict[str, Any]:
    """The example's model and batch, with time for some checkpoints: what waiting is beside steps of some size."""
    manifest, like = small_training(corpus, "stalled", STALL_STEPS, CHECKPOINT_STEPS), example("ArcticTraining", "like")
    spec = manifest["spec"]
    spec["model"], spec["batch"] = like["spec"]["model"], like["spec"]["batch"]
    spec["curriculum"]["stages"] = spec["curriculum"]["stages"][:1]
    [stage] = spec["curriculum"]["stages"]
    stage["tokens"] = STALL_STEPS * spec["batch"]["tokensPerStep"]
    stage["sequenceLength"] = like["spec"]["curriculum"]["stages"][0]["sequenceLength"]
    return manifest


@contextmanager
def volumes(scratch: Path, corpus: Path) -> Iterator[tuple[Path, Callable[[], Any] | None]]:
    """Make the folder of the claims, on a file system of its own where that is possible; the second fills it."""
    folder = scratch / "volumes"
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(folder, DISK)) if geteuid() == 0 else None
        (folder / STORE).mkdir()
        (folder / CORPUS).symlink_to(corpus)
        yield folder, disk


@contextmanager
def running(manifest: dict[str, Any], place: Path, corpus: Path) -> Iterator[tuple[LocalRun, Callable[[], Any] | None]]:
    """Run a training whose first step has been made; nothing of it is left afterwards."""
    with volumes(place, corpus) as (folder, disk):
        run = LocalRun(manifest, folder, place)
        try:
            note(f"{place.name}: the first step is made after {run.begin():.1f} s")
            yield run, disk
        finally:
            run.end()


def stall_share(scratch: Path) -> float:
    """Return the share of the time that ranks wait for checkpoints."""
    corpus = scratch / "corpus"
    with running(stalled_manifest(corpus), scratch / "stalled", corpus) as (run, _):
        start, step = time.monotonic(), run.step()
        before = after = run.metrics()
        while run.code is None and after["arctic_training_steps_total"] < STALL_STEPS - 1:
            after = run.metrics() or after  # the last one's checkpoint is waited for, and the export follows
            time.sleep(0.1)
        seconds = time.monotonic() - start
    waited = after[STALL] - before[STALL]
    note(f"stalled: {waited:.3f} s of {seconds:.1f} s for {after['arctic_training_steps_total'] - step:.0f} steps")
    return waited / seconds


@dataclass(frozen=True)
class Measured:
    """Both runs of the small training."""

    alone: float
    """Seconds from its first step to its end, left alone."""
    disturbed: float
    """The same with faults; infinite if it did not come to its end."""
    faults: int
    """That were inflicted."""
    survived: list[Fault]
    equal: bool
    """Whether both ended with the same bits."""


def measure(quick: bool, scratch: Path) -> Measured:
    """Train once undisturbed and once disturbed."""
    faults, steps = (QUICK, QUICK_STEPS) if quick else (FAULTS, STEPS)
    manifest = small_training(scratch / "corpus", "text", steps, CHECKPOINT_STEPS)
    with running(manifest, scratch / "alone", scratch / "corpus") as (alone, _):
        start = time.monotonic()
        alone.finish()
        undisturbed = time.monotonic() - start
        note(f"alone: {steps} steps in {undisturbed:.1f} s")
        with running(manifest, scratch / "disturbed", scratch / "corpus") as (disturbed, disk):
            start = time.monotonic()
            spread = int(FAULTS_OF_STEPS * steps)
            survived = outlived(Campaign(disturbed, SEED, spread, disk, note).inflict(faults), disturbed.finish)
            whole = len(survived) == faults
            seconds = time.monotonic() - start if whole else math.inf
            assert alone.folder is not None
            assert disturbed.folder is not None
            equal = whole and same_end(alone.folder, disturbed.folder)
            return Measured(undisturbed, seconds, faults, survived, equal)


def outlived(faults: Iterator[Fault], finish: Callable[[], object]) -> list[Fault]:
    """Return the faults that a run came past; the last one only if it also came to a good end, which `finish` awaits.

    The first one that it does not survive is the last: there is nothing left to hit.
    """
    survived: list[Fault] = []
    try:
        survived.extend(faults)
    except AssertionError as error:
        note(f"NOT SURVIVED: {error}")
        return survived
    try:
        finish()
    except AssertionError as error:
        note(f"NOT SURVIVED: {error}")
        return survived[:-1]
    return survived


def measure_in_a_cluster() -> tuple[int, list[Fault], bool]:
    """Train twice in a cluster of its own, hit once and left alone once.

    Returns how many faults were inflicted, those that were survived, and whether both ended with the same bits.
    """
    cluster = Cluster(NAMESPACE)
    folders: list[Path] = []
    try:
        cluster.up(nodes=2)
        install_operator(cluster)
        cluster.apply([restricted_namespace(NAMESPACE)])
        cluster.create_claims(NAMESPACE)
        objects, corpus, text = Objects(cluster, NAMESPACE), cluster.volumes / CORPUS, f"faults-{uuid.uuid4().hex}"
        folders.append(corpus / text)
        manifest = small_training(corpus, text, STEPS_IN_A_CLUSTER, CHECKPOINT_STEPS, TOKENS_IN_A_CLUSTER)
        disturbed = ClusterTraining(objects, named(manifest, "disturbed"), note)
        faults = len(disturbed.kinds)
        survived = outlived(disturbed.inflict(), lambda: folders.append(disturbed.finish()))
        if len(survived) < faults:
            return faults, survived, False
        folders.append(ClusterTraining(objects, named(manifest, "alone")).finish())
        return faults, survived, same_end(*folders[1:])
    finally:
        cluster.down()
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def named(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the manifest of an object under another name."""
    return manifest | {"metadata": {"name": name}}


def show(faults: Sequence[Fault]) -> None:
    """Print what each kind of fault cost."""
    kinds = {fault.kind: [each.seconds_lost for each in faults if each.kind == fault.kind] for fault in faults}
    print_table(
        "Seconds lost by a fault",
        ("", "faults", "median", "most"),
        [
            (kind, len(lost), f"{statistics.median(lost):.1f}", f"{max(lost):.1f}")
            for kind, lost in sorted(kinds.items(), key=lambda item: statistics.median(item[1]))
        ],
    )


def main() -> None:
    """Train, inflict, print."""
    told = arguments(__doc__, f"{QUICK} faults instead of {FAULTS}, and a quarter of the steps")
    wait_for_quiet()
    with tempfile.TemporaryDirectory(prefix="arctic-faults-") as folder:
        stalled = stall_share(Path(folder))
        measured = measure(told.quick, Path(folder))
    in_cluster, survived, equal = measure_in_a_cluster() if geteuid() == 0 else (0, [], True)
    faults, survived = measured.faults + in_cluster, [*measured.survived, *survived]
    lost = [fault.seconds_lost for fault in survived]
    if len(lost) < 2:
        raise SystemExit(f"{len(lost)} of {faults} faults were survived: there is nothing to sum up")
    show(survived)
    print_table(
        f"{len(lost)} of {faults} faults survived, {CHECKPOINT_STEPS} steps from checkpoint to checkpoint",
        ("", ""),
        (
            ("seconds of the run when left alone", f"{measured.alone:.1f}"),
            ("seconds of the run with the faults", f"{measured.disturbed:.1f}"),
            ("the same bits at the end", "yes" if measured.equal else "NO"),
            (
                "the same bits at the end in a cluster",
                ("yes" if equal else "NO") if in_cluster else "not run: not root",
            ),
            ("goodput with a fault an hour", f"{1 - statistics.mean(lost) / 3600:.2%}"),
            ("share of the time that steps wait for checkpoints", f"{stalled:.2%}"),
        ),
    )
    finish(
        told,
        {
            "faults": faults,
            "survived": len(lost),
            "bit_equal": float(measured.equal and equal),
            "goodput": measured.alone / measured.disturbed,
            "seconds_lost_p50": statistics.median(lost),
            "seconds_lost_p95": statistics.quantiles(lost, n=20, method="inclusive")[-1],
            "checkpoint_stall_share": stalled,
        },
        less_is_better=("seconds_lost_p50", "seconds_lost_p95", "checkpoint_stall_share"),
        unjudged=("faults",),
    )


if __name__ == "__main__":
    main()
