"""What one GPU does of our work, against what it can do at all: training, decoding and prompts of a large model.

All parts are in one process, in this order, and end within eight minutes: the card's own ceilings (copying, reading,
matmuls); decoding with layers of the large Arctic's own sizes, as many of its layers and experts as fit, against the
bytes that a step has to read at the rate at which the card reads; prompts and large batches, against torch's grouped
GEMM in FP8 for the same products; a step of training of a model of 1.5B parameters, against plain torch with grouped
GEMMs and `torch.compile`, then in FP8 against our bf16; and what the large Arctic would do on two nodes of eight.

A part that fails says why, and the others go on. After each the figures so far are in `benchmarks/gpu.json` in the
cache. Without a GPU nothing is measured: what Triton's compiler makes of the engine's kernels for some cards is shown,
and it exits with 2.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import FrameType

import torch

from arctic_api.training import Precision
from arctic_cluster import paths
from arctic_model.config import ArcticConfig
from arctic_workers.training.engine import Ranks
from benchmarks.form import arguments, finish, last_line, note, print_table
from benchmarks.on_gpu import ahead, ceilings, decode, prefill, training
from benchmarks.on_gpu.layers import Loaded, loaded
from benchmarks.on_gpu.sizes import fitting, layer_flops, projected

MODEL = ArcticConfig.preset("arctic")
NODES, PER_NODE = 2, 8
REPORTED = 70
"""Tokens a second of one sequence of the 480B, in its makers' announcement (Snowflake, April 2024): more than these."""
MINUTES = 8
STARTING = 30
"""Seconds of those that go to imports, and to the last lines."""
SHOWN = 8
"""Kernels of a step that are named."""
UNJUDGED = ("projected_tokens_s",)


class OutOfTime(Exception):  # noqa: N818 - names what happened
    """A part has had all of its seconds."""


@dataclass
class Measuring:
    """One run of all parts."""

    device: torch.device
    found: dict[str, float] = field(default_factory=dict)
    """Figures by name."""
    layers: Loaded | None = None
    """Those that fit, while parts need them."""

    @cached_property
    def ranks(self) -> Ranks:
        """This process as the one rank of a training."""
        return training.alone()

    def loaded(self) -> Loaded:
        """Return as many layers as fit; the first part that asks for them has them made."""
        if self.layers is None:
            training.release(self.device)
            free, _ = torch.cuda.mem_get_info(self.device)
            fit = fitting(MODEL, free, prefill.MOST, decode.CONTEXT)
            note(
                f"{fit.config.num_hidden_layers} of {MODEL.num_hidden_layers} layers with "
                f"{fit.config.num_local_experts} of {MODEL.num_local_experts} experts: {fit.bytes / 2**30:.0f} GiB"
            )
            self.layers = loaded(fit.config, self.device, prefill.MOST, decode.CONTEXT)
        return self.layers


@dataclass(frozen=True)
class Part:
    """What is measured by itself."""

    name: str
    seconds: float
    """That it has at most."""
    measure: Callable[[Measuring], Mapping[str, float]]
    """Prints its table, and returns its figures."""


def measure_ceilings(run: Measuring) -> dict[str, float]:
    """Measure the card itself."""
    card = ceilings.measured(run.device)
    rows = [("copy, TB/s", card.copy / 1e12), ("read, TB/s", card.read / 1e12), ("bf16, TFLOP/s", card.bf16 / 1e12)]
    figures = {"copy_tb_s": card.copy / 1e12, "read_tb_s": card.read / 1e12, "bf16_tflops": card.bf16 / 1e12}
    if card.fp8 is not None:
        rows.append(("FP8, TFLOP/s", card.fp8 / 1e12))
        figures["fp8_tflops"] = card.fp8 / 1e12
    print_table("The card's ceilings", ("", "reached"), [(name, f"{value:.4g}") for name, value in rows])
    return figures


def measure_decode(run: Measuring) -> dict[str, float]:
    """Measure steps of one token a sequence."""
    read = run.found["read_tb_s"] * 1e12
    found = [decode.decoded(run.loaded(), batch, decode.CONTEXT) for batch in decode.BATCHES]
    print_table(
        f"Decoding a layer of the 480B at {decode.CONTEXT} tokens of context, FP8 weights, bf16 keys and values",
        ("sequences", "experts touched", "MB to read", "us", "TB/s", "of the limit"),
        [
            (
                one.batch,
                f"{one.touched:.1f}",
                f"{one.bytes / 1e6:.0f}",
                f"{1e6 * one.seconds:.1f}",
                f"{one.rate / 1e12:.2f}",
                f"{one.of_limit(read):.2f}",
            )
            for one in found
        ],
    )
    for one in found:
        note(f"the first layer's experts at {one.batch} sequences: {', '.join(map(str, one.experts))}")
        print_kernels(f"Kernels of a step of {one.batch} sequences, all layers", one.kernels)
    shares = {f"decode_b{one.batch}_of_limit": one.of_limit(read) for one in found}
    return shares | {f"decode_b{one.batch}_us": 1e6 * one.seconds for one in found}


def measure_prefill(run: Measuring) -> dict[str, float]:
    """Measure prompts and a large batch, exact and with rows rounded to FP8."""
    exact = {name: prefill.read(run.loaded(), parts) for name, parts in prefill.STEPS.items()}
    config = run.loaded().config
    run.layers = None
    training.release(run.device)
    few = config.replace(num_hidden_layers=min(2, config.num_hidden_layers))
    run.layers = loaded(few, run.device, prefill.MOST, decode.CONTEXT, rounds=True)
    rounded = {name: prefill.read(run.layers, parts) for name, parts in prefill.STEPS.items()}
    run.layers = None
    flops = layer_flops(MODEL)
    print_table(
        "Prompts and large batches, a layer, against torch._scaled_grouped_mm for the same products",
        ("", "rows", "", "us", "TFLOP/s", "torch's", "of torch's", "tokens/s of 35 layers"),
        [
            (
                name,
                one.rows,
                way,
                f"{1e6 * one.seconds:.0f}",
                f"{one.rows * flops / one.seconds / 1e12:.0f}",
                f"{one.rows * flops / one.products / 1e12:.0f}",
                f"{one.of_gemm:.2f}",
                f"{one.rows / one.seconds / MODEL.num_hidden_layers:.0f}",
            )
            for way, found in (("exact", exact), ("FP8", rounded))
            for name, one in found.items()
        ],
    )
    return {
        "prefill_of_gemm": min(one.of_gemm for one in rounded.values()),
        "prefill_exact_of_gemm": min(one.of_gemm for one in exact.values()),
    }


def measure_plain(run: Measuring) -> dict[str, float]:
    """Measure steps of training in plain torch."""
    run.layers = None
    training.release(run.device)
    one = training.plain(training.CASE, run.device, budget=8.0)
    print_training("Plain torch with grouped GEMMs and torch.compile", one)
    return {"torch_tflops": one.flops(training.CASE) / 1e12}


def measure_ours(run: Measuring) -> dict[str, float]:
    """Measure our steps of training in bf16."""
    one = train(run, "bf16")
    planned = training.planned_bytes(training.CASE, "bf16", run.ranks)
    tflops = one.flops(training.CASE) / 1e12
    note(f"memory {one.peak / 2**30:.1f} GiB at most, {planned / 2**30:.1f} as `arctic plan` says")
    figures = {"train_tflops": tflops, "train_busy": one.busy, "train_memory_of_plan": one.peak / planned}
    if "torch_tflops" in run.found:
        figures["train_vs_torch"] = tflops / run.found["torch_tflops"]
    return figures


def measure_fp8(run: Measuring) -> dict[str, float]:
    """Measure the same with FP8 matmuls."""
    one = train(run, "fp8")
    return {"train_fp8_vs_bf16": one.flops(training.CASE) / 1e12 / run.found["train_tflops"]}


def train(run: Measuring, precision: Precision) -> training.Trained:
    """Take our steps at a precision."""
    training.release(run.device)
    one = training.ours(training.CASE, precision, run.ranks, budget=8.0)
    print_training(f"Ours in {precision}", one)
    return one


def project(run: Measuring) -> dict[str, float]:
    """Say what the whole model would do on several nodes, at the rates that were reached here."""
    read = run.found["read_tb_s"] * 1e12 * run.found["decode_b1_of_limit"]
    rate = run.found.get("fp8_tflops", run.found["bf16_tflops"]) * 1e12
    one = projected(
        MODEL,
        torch.cuda.get_device_name(run.device),
        read,
        rate,
        nodes=NODES,
        per_node=PER_NODE,
        length=decode.CONTEXT,
    )
    print_table(
        f"The 480B on {NODES} nodes of {PER_NODE}, one sequence of {decode.CONTEXT} tokens",
        ("", "tokens/s"),
        [
            ("*projected*: bytes at the rate reached here, and no latency of any message", f"{one:.0f}"),
            ("as the model's makers report", REPORTED),
        ],
    )
    return {"projected_tokens_s": one}


PARTS = (
    Part("ceilings", 45, measure_ceilings),
    Part("decoding", 110, measure_decode),
    Part("prompts and large batches", 90, measure_prefill),
    Part("training in plain torch", 130, measure_plain),
    Part("training", 90, measure_ours),
    Part("training in FP8", 90, measure_fp8),
    Part("projection", 10, project),
)
WITHOUT_TRAINING = tuple(part for part in PARTS if part.measure not in (measure_plain, measure_ours, measure_fp8))


def print_kernels(title: str, kernels: list[tuple[str, int, float]]) -> None:
    """Print those that take longest."""
    print_table(
        title,
        ("kernel", "times", "us"),
        [(name[:80], count, f"{taken:.1f}") for name, count, taken in kernels[:SHOWN]],
    )


def print_training(title: str, one: training.Trained) -> None:
    """Print a side of the training."""
    case = training.CASE
    print_table(
        f"{title}: a step of {case.tokens} tokens",
        ("", "reached"),
        [
            ("ms", f"{1e3 * one.seconds:.1f}"),
            ("tokens/s", f"{case.tokens / one.seconds:.0f}"),
            ("TFLOP/s", f"{one.flops(case) / 1e12:.0f}"),
            ("share in which the GPU is busy", f"{one.busy:.3f}"),
            ("GiB at most", f"{one.peak / 2**30:.1f}"),
            *((f"us of {name[:80]}", f"{taken:.0f}") for name, taken in one.kernels),
        ],
    )


def run_parts(run: Measuring, parts: tuple[Part, ...], keep: Callable[[], None]) -> None:
    """Measure part by part; `keep` is called after each."""
    end = time.monotonic() + 60 * MINUTES - STARTING
    for part in parts:
        start = time.monotonic()
        try:
            with at_most(min(part.seconds, end - start)):
                figures = part.measure(run)
        except Exception as error:  # the others go on
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            note(f"{part.name}: failed after {time.monotonic() - start:.0f} s: {why}")
        else:
            run.found |= figures
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            print(f"{part.name}: {shown} ({time.monotonic() - start:.0f} s)", flush=True)
        keep()


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in what stands in here once it has taken so long; only the main thread can ask for that."""
    if seconds <= 0:
        raise OutOfTime("no time is left of the whole")

    def ring(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise OutOfTime(f"it took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def ended_by(seconds: float, line: Callable[[], str]) -> Iterator[None]:
    """End the process with a last line where this takes so long: a host that waits for a card takes no signal."""

    def end() -> None:
        note(f"cut after {seconds:.0f} s: a part waits for the card, and does not end")
        print(line(), flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def write(line: str, path: Path) -> None:
    """Keep the figures so far, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(f"{line}\n")
    beside.replace(path)


def main() -> None:
    """Print the tables and the figures."""
    told = arguments(__doc__, "without training")
    if not torch.cuda.is_available():
        note("there is no GPU here: nothing is measured; this is what its kernels would be")
        ahead.report()
        sys.exit(2)
    device = torch.device("cuda", 0)
    card = torch.cuda.get_device_name(device)
    run = Measuring(device)
    so_far = paths.cache() / "benchmarks" / "gpu.json"
    note(f"{card}; figures so far are in {so_far}")
    parts = WITHOUT_TRAINING if told.quick else PARTS
    with ended_by(60 * MINUTES - STARTING / 2, lambda: last_line(run.found, card)):
        run_parts(run, parts, lambda: write(last_line(run.found, card), so_far))
    times = [name for name in run.found if name.endswith("_us")]
    finish(told, run.found, less_is_better=("train_memory_of_plan", *times), unjudged=UNJUDGED, card=card)


if __name__ == "__main__":
    main()
