"""Tokens a second of a training on one rank: against the same model in plain torch, and against the machine's matmuls.

Both sides are in one process with a rank's environment and take steps in turn: ours through DeepSpeed's engine as the
trainer makes them, the other as one writes it by hand, with the same model, micro-batches, threads, dtype and
optimizer. The roofline is the FLOPs that the model asks for by the rate of one large product in fp32, measured between
them. Memory is what weights, gradients and the optimizer's state take, in bytes a parameter, against ZeRO-2's formula.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from arctic_api.world import WORLD_VARIABLE, TrainingWorld
from arctic_cli.ports import free_ports
from arctic_model.cost import training_flops_per_token
from arctic_workers.training.supervisor import rank_environment
from benchmarks.form import arguments, finish, in_alternation, print_table, spread, wait_for_quiet
from benchmarks.one_rank import CASES, MATMUL

ZERO_2 = 20
"""Bytes a parameter in fp32 on one rank: weights, and of the rank's partition, which is all, gradients, masters and two
moments (Rajbhandari et al. 2020, ZeRO, section 3, with weights and gradients of 4 bytes)."""

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
    with one_rank() as ask:
        memory = {case: ask(f"bytes {case}") for case in CASES}
        asked = ["matmul", *(f"{side} {case}" for case in CASES for side in SIDES)]
        taken = in_alternation(3 if told.quick else 9, {line: lambda line=line: ask(line) for line in asked})  # type: ignore[misc]
    flops = 2 * MATMUL**3 / statistics.median(taken["matmul"])
    rates = {
        line: [CASES[line.split()[1]].tokens / seconds for seconds in taken[line]] for line in asked if line != "matmul"
    }
    ratios = {
        case: statistics.median(
            plain / ours for ours, plain in zip(taken[f"ours {case}"], taken[f"plain {case}"], strict=True)
        )
        for case in CASES
    }
    shares = {
        case: statistics.median(rates[f"ours {case}"])
        * training_flops_per_token(CASES[case].config, CASES[case].length)
        / flops
        for case in CASES
    }
    print_table(
        f"Tokens a second; a product of {MATMUL} x {MATMUL} matrices in fp32 has {flops / 1e9:.0f} GFLOP/s",
        ("", "ours", "plain torch", "ours / plain", "of the roofline"),
        [
            (case, *(spread(rates[f"{side} {case}"]) for side in SIDES), f"{ratios[case]:.3f}", f"{shares[case]:.2f}")
            for case in CASES
        ],
    )
    print_table(
        "Bytes a parameter",
        ("", "ours", "ZeRO-2's formula"),
        [(name, f"{memory[name]:.2f}", ZERO_2) for name in CASES],
    )
    finish(
        told,
        {
            "vs_torch": ratios["tiny"],
            "vs_torch_100m": ratios["100m"],
            "of_matmul_roofline": shares["100m"],
            "of_matmul_roofline_tiny": shares["tiny"],
            "bytes_per_parameter": memory["100m"],
            "bytes_over_zero2": memory["100m"] / ZERO_2,
        },
        less_is_better=("bytes_per_parameter", "bytes_over_zero2"),
    )


@contextmanager
def one_rank() -> Iterator[Ask]:
    """Start the process with both sides; yields how it is asked."""
    world = TrainingWorld.model_validate(WORLD)
    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    [port] = free_ports(1)
    told = {
        WORLD_VARIABLE: world.model_dump_json(by_alias=True),
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = (sys.executable, "-m", "benchmarks.one_rank")
    environment, pipe = rank_environment(world, own) | told, subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines, answers = process.stdin, process.stdout

        def ask(line: str) -> float:
            print(line, file=lines, flush=True)
            answer = answers.readline()
            if not answer:
                sys.exit(f"the rank ended with exit code {process.wait()}")
            return float(answer)

        yield ask
        lines.close()


if __name__ == "__main__":
    main()
