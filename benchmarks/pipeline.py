"""Two processes of one core each, a pipeline, against one process with both cores: tokens a second of decoding.

One process decodes n sequences, the pipeline 2n: two steps of n are on their way. Both read the same weights from the
same memory, so that an efficiency of 1 is a pipeline that loses nothing by its messages, by waiting, and by the uneven
halves of the model (the second has the output matrix). The model is a random Arctic of 466M parameters in FP8; prompts
differ. Then the same pipeline with its ranks in two networks joined by a link of 1 Gbit/s, as two nodes are.
"""

import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from arctic_api.world import InferenceGroup
from arctic_cluster.errors import ClusterError
from benchmarks.form import arguments, finish, in_alternation, note, print_table, spread, wait_for_quiet
from benchmarks.links import ADDRESSES, link
from benchmarks.models import random_model
from benchmarks.native import group_of
from benchmarks.pinned import Place, pinned

BATCHES = (16, 64)
TOKENS = 40
"""Tokens of each answer."""
SPEC: dict[str, Any] = {
    "attention": {"maxLength": 256},
    # A random model goes in circles: what proposals gain there says nothing of texts.
    "batching": {"maxSequences": 2 * max(BATCHES)},
}
RATE = "1gbit"


def pipeline_of(model: Path, scratch: Path, **options: str) -> list[InferenceGroup]:
    """Return what two pipeline ranks are told."""
    engine = {"name": "native", "options": options}
    return group_of(model, scratch, parallelism={"pipeline": 2}, engine=engine, **SPEC)


def over_the_link(model: Path, scratch: Path, cores: list[int], rounds: int) -> dict[str, list[float]]:
    """Tokens a second with each format on the wire, by format and batch."""
    taken: dict[str, list[float]] = {}
    with link(RATE) as joined:
        places = [Place((core,), enter) for core, enter in zip(cores, joined.inside, strict=True)]
        for wire in ("fp32", "bf16", "fp8"):
            groups = [
                group.model_copy(update={"hosts": list(ADDRESSES)})
                for group in pipeline_of(model, scratch, pipeline_format=wire)
            ]
            with pinned(groups, places) as pipeline:
                measures = {
                    f"{wire} {batch}": lambda batch=batch: pipeline.decode(2 * batch, TOKENS) for batch in BATCHES
                }
                taken |= in_alternation(rounds, measures)
    return taken


def side_by_side(model: Path, scratch: Path, cores: list[int], rounds: int) -> dict[str, list[float]]:
    """Tokens a second of one process and of two, by name and batch."""
    [alone] = group_of(model, scratch, **SPEC)
    with (
        pinned([alone], [Place(tuple(cores))]) as one,
        pinned(pipeline_of(model, scratch), [Place((core,)) for core in cores]) as two,
    ):
        measures = {}
        for batch in BATCHES:
            measures[f"one {batch}"] = partial(one.decode, batch, TOKENS)
            measures[f"two {batch}"] = partial(two.decode, 2 * batch, TOKENS)
        for measure in measures.values():
            measure()  # the first time, memory is still to be given out
        return in_alternation(rounds, measures)


def main() -> None:
    """Print the tables and the figures."""
    told = arguments(__doc__, "one round")
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        sys.exit("two cores are needed: one for each rank")
    model, rounds = random_model(), 1 if told.quick else 5
    with tempfile.TemporaryDirectory() as scratch:
        wait_for_quiet()
        taken = side_by_side(model, Path(scratch), cores, rounds)
        try:
            linked = over_the_link(model, Path(scratch), cores, min(rounds, 3))
        except ClusterError as error:
            note(f"the link of {RATE} is left out, it takes root, ip and tc: {error}")
            linked = {}
    ratios = {
        batch: [two / one for one, two in zip(taken[f"one {batch}"], taken[f"two {batch}"], strict=True)]
        for batch in BATCHES
    }
    print_table(
        "Decoding, tokens/s",
        ("n", "one process, n sequences", "two processes, 2n sequences", "efficiency"),
        [(n, spread(taken[f"one {n}"]), spread(taken[f"two {n}"]), spread(ratios[n])) for n in BATCHES],
    )
    if linked:
        print_table(
            f"Two nodes on a link of {RATE}, 2n sequences, tokens/s by the format on the wire",
            ("n", "fp32", "bf16", "fp8"),
            [(n, *(spread(linked[f"{wire} {n}"]) for wire in ("fp32", "bf16", "fp8"))) for n in BATCHES],
        )
    finish(told, {"efficiency": min(statistics.median(values) for values in ratios.values())})


if __name__ == "__main__":
    main()
