"""Tokens a second of a training on one rank: against the same model in plain torch, and against the machine's matmuls.

Of each model both sides are in one process with a rank's environment and take steps in turn: ours through DeepSpeed's
engine as the trainer makes them, the other as one writes it by hand, with the same model, micro-batches, threads,
dtype and optimizer. Each model has a process of its own, as a training has: memory that another one gave back would
save plain torch the page faults of its logits. The roofline is the FLOPs that the model asks for by the rate of one
large product in fp32, measured between them. Memory is what weights, gradients and the optimizer's state take, in
bytes a parameter on one rank and on two, against ZeRO-2's formula.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

from arctic_api.world import WORLD_VARIABLE, TrainingWorld
from arctic_model.cost import training_flops_per_token
from arctic_workers.control.ports import free_ports
from arctic_workers.training.supervisor import rank_environment
from benchmarks.form import arguments, finish, in_alternation, print_table, spread, wait_for_quiet
from benchmarks.one_rank import CASES, MATMUL


def zero_2(ranks: int) -> float:
    """Return ZeRO-2's bytes a parameter in fp32: weights, and a rank's part of gradients, masters and two moments.

    Rajbhandari et al. 2020, ZeRO, section 3, with weights and gradients of 4 bytes.
    """
    return 4 + 16 / ranks


WORLD = {
    "namespace": "default",
    "name": "one-rank",
    "uid": "one-rank",
    "firstHost": "127.0.0.1",
    "tls_folder": None,
    "attempt": 1,
    "epoch": 1,
    "run_folder": "/nowhere",
    "spec": {
        "model": {"preset": "arctic-tiny"},
        "data": {"sources": [{"name": "any", "category": "general", "uri": "file:///nowhere"}]},
        "curriculum": {
            "stages": [{"name": "only", "tokens": 4096, "mixture": {"any": 1}, "learningRate": {"peak": 1e-4}}]
        },
        "batch": {"tokensPerStep": 4096},
        "checkpoint": {"volume": {"claimName": "none"}},
    },
}

SIDES = ("ours", "plain")
Ask = Callable[[str], float]


def main() -> None:
    """Print the tables and the figures."""
    told = arguments(__doc__, "three rounds")
    wait_for_quiet()
    found = {case: measure(case, 3 if told.quick else 9) for case in CASES}
    print_table(
        f"Tokens a second; the roofline is a product of {MATMUL} x {MATMUL} matrices in fp32",
        ("", "ours", "plain torch", "ours / plain", "GFLOP/s of the roofline", "of it"),
        [
            (case, *map(spread, one.rates), f"{one.ratio:.3f}", f"{one.roofline / 1e9:.0f}", f"{one.share:.2f}")
            for case, one in found.items()
        ],
    )
    print_table(
        "Bytes a parameter, of the rank that has most",
        ("", "ranks", "ours", "ZeRO-2's formula"),
        [
            (case, count, f"{had:.2f}", f"{zero_2(count):g}")
            for case, one in found.items()
            for count, had in one.bytes_per_parameter.items()
        ],
    )
    finish(
        told,
        {
            "vs_torch": found["tiny"].ratio,
            "vs_torch_100m": found["100m"].ratio,
            "of_matmul_roofline": found["100m"].share,
            "of_matmul_roofline_tiny": found["tiny"].share,
            "bytes_per_parameter": found["100m"].bytes_per_parameter[1],
            "bytes_over_zero2": found["100m"].bytes_per_parameter[1] / zero_2(1),
            "bytes_over_zero2_of_two": found["100m"].bytes_per_parameter[2] / zero_2(2),
        },
        less_is_better=("bytes_per_parameter", "bytes_over_zero2", "bytes_over_zero2_of_two"),
    )


class Found(NamedTuple):
    """What was measured of one model."""

    rates: tuple[list[float], list[float]]
    """Tokens a second of each round, ours and plain torch's."""
    ratio: float
    """Ours over plain torch's: the median of the rounds."""
    roofline: float
    """FLOP/s of one large product."""
    share: float
    """FLOP/s that the model asks for, over those."""
    bytes_per_parameter: dict[int, float]
    """By how many ranks there are, of the one that has most."""


def measure(case: str, rounds: int) -> Found:
    """Measure one of `CASES` in processes of its own."""
    with ranks(2) as ask_both:
        memory = {2: max(ask_both(f"bytes {case}"))}
    with one_rank() as ask:
        memory = {1: ask(f"bytes {case}"), **memory}
        lines = ("matmul", *(f"{side} {case}" for side in SIDES))
        product, ours, plain = in_alternation(rounds, {line: partial(ask, line) for line in lines}).values()
    step = CASES[case]
    rates = ([step.tokens / seconds for seconds in ours], [step.tokens / seconds for seconds in plain])
    ratio = statistics.median(other / mine for mine, other in zip(ours, plain, strict=True))
    roofline = 2 * MATMUL**3 / statistics.median(product)
    flops = statistics.median(rates[0]) * training_flops_per_token(step.config, step.length)
    return Found(rates, ratio, roofline, flops / roofline, memory)


@contextmanager
def one_rank() -> Iterator[Ask]:
    """Start the process with both sides; yields how it is asked."""
    with ranks(1) as ask:
        yield lambda line: ask(line)[0]


@contextmanager
def ranks(count: int) -> Iterator[Callable[[str], list[float]]]:
    """Start the ranks of a world, each with both sides; yields how all are asked at once."""
    world = TrainingWorld.model_validate(WORLD)
    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    [port] = free_ports(1)
    told = rank_environment(world, own) | {
        WORLD_VARIABLE: world.model_dump_json(by_alias=True),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with ExitStack() as stack:
        processes = [stack.enter_context(_rank(rank, told)) for rank in range(count)]

        def ask(line: str) -> list[float]:
            for process in processes:
                print(line, file=process.stdin, flush=True)
            return [_answer(process) for process in processes]

        yield ask
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()


def _rank(rank: int, told: dict[str, str]) -> "subprocess.Popen[str]":
    command = (sys.executable, "-m", "benchmarks.one_rank")
    environment, pipe = told | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)


def _answer(process: "subprocess.Popen[str]") -> float:
    assert process.stdout is not None
    answer = process.stdout.readline()
    if not answer:
        sys.exit(f"a rank ended with exit code {process.wait()}")
    return float(answer)


if __name__ == "__main__":
    main()
