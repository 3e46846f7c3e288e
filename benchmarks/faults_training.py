"""A training that is killed again and again: does it finish, with the same weights, and what does each fault cost?

A small Arctic is trained twice as two pods of local processes: once left alone, once with faults at moments that a seed
decides. Killed are ranks, rank 0, pods, nodes, and all at once; a rank is stopped; the newest checkpoint is truncated;
the disk is full for a while (on a file system of its own, for which this needs root). What a fault costs is the time
until the run is past the step that it had reached. A checkpoint is written every 20 steps. Goodput is the time that the
run takes when it is left alone, over what it took. How long ranks wait for checkpoints is measured with the example's
model and batch, whose steps are larger. Faults in the cluster itself are inflicted by `make chaos`.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import geteuid
from pathlib import Path
from typing import Any

from objects import example
from training_faults import Campaign, Fault, LocalRun, same_end, small_disk, small_training

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
    """The same with faults."""
    faults: list[Fault]
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
            inflicted = list(Campaign(disturbed, SEED, spread, disk, note).inflict(faults))
            disturbed.finish()
            seconds = time.monotonic() - start
            assert alone.folder is not None
            assert disturbed.folder is not None
            return Measured(undisturbed, seconds, inflicted, same_end(alone.folder, disturbed.folder))


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
    lost = [fault.seconds_lost for fault in measured.faults]
    show(measured.faults)
    print_table(
        f"{len(lost)} faults, {CHECKPOINT_STEPS} steps from checkpoint to checkpoint",
        ("", ""),
        (
            ("seconds of the run when left alone", f"{measured.alone:.1f}"),
            ("seconds of the run with the faults", f"{measured.disturbed:.1f}"),
            ("the same bits at the end", "yes" if measured.equal else "NO"),
            ("goodput with a fault an hour", f"{1 - statistics.mean(lost) / 3600:.2%}"),
            ("share of the time that steps wait for checkpoints", f"{stalled:.2%}"),
        ),
    )
    finish(
        told,
        {
            "faults": len(lost),
            "survived": len(lost),
            "bit_equal": float(measured.equal),
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
