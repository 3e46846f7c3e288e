"""Tokens a second of the native engine: against the memory's limit, llama.cpp, and itself behind its HTTP API.

The model is a random Arctic of 466M parameters, in FP8 here and in Q8_0 there; prompts differ, so that each sequence
has experts of its own. The limit is what the memory allows: the bytes that a step has to read, at the rate at which
the same process reads memory. All are measured in turn, several rounds, greedily, 128 tokens a request.
"""

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from arctic_workers.inference.memory import available_cores
from benchmarks.compiled import ReadCeiling
from benchmarks.form import arguments, finish, in_alternation, note, print_table, spread, wait_for_quiet
from benchmarks.llama import llama_cpp
from benchmarks.models import prompts, random_gguf, random_model
from benchmarks.native import InProcess, group_of, served
from benchmarks.touched import Choices, step_bytes

BATCHES = (1, 4, 16, 64)
OVER_HTTP = (1, 16, 64)
PROMPT = 32
TOKENS = 128
LONG = 512
"""Tokens of the prompt whose reading is measured."""
SPEC = {"attention": {"maxLength": 1024}, "batching": {"maxSequences": 64}}
"""A random model goes in circles: what proposals gain there says nothing of texts."""


def tuned_threads(measure: Callable[[int], float], cores: int) -> int:
    """Return the number of threads with which a peer is fastest at batch 1."""
    return max(range(1, cores + 1), key=measure)


def main() -> None:
    """Print the tables and the figures."""
    told = arguments(__doc__, "one round")
    cores = available_cores()
    folder, asked = random_model(), prompts(max(BATCHES), PROMPT)
    long = [token for prompt in asked for token in prompt][:LONG]
    gguf = random_gguf()
    ceiling = ReadCeiling(cores)
    with tempfile.TemporaryDirectory() as scratch, llama_cpp(gguf, asked, TOKENS) as peer:
        places = Path(scratch)
        engine = InProcess(group_of(folder, places, **SPEC)[0])
        with served(group_of(folder, places, **SPEC)[0]) as service:
            wait_for_quiet()
            threads = tuned_threads(lambda count: peer.decode(1, count), cores)
            note(f"llama.cpp is fastest with {threads} threads")
            measures: dict[str, Callable[[], float]] = {"ceiling": ceiling.measure}
            for batch in BATCHES:
                measures[f"native {batch}"] = partial(engine.decode, asked[:batch], TOKENS)
                measures[f"llama.cpp {batch}"] = partial(peer.decode, batch, threads)
                if batch in OVER_HTTP:
                    measures[f"http {batch}"] = partial(service.decode, asked[:batch], TOKENS)
            measures["native prefill"] = lambda: engine.prefill(long)
            measures["llama.cpp prefill"] = lambda: peer.prefill(LONG, cores)
            taken = in_alternation(1 if told.quick else 5, measures)
        parts = {batch: engine.seconds_by_part(asked[:batch], TOKENS) for batch in BATCHES}
        answers = {batch: engine.answers(asked[:batch], TOKENS) for batch in BATCHES}
        engine.stop()
    choices = Choices(folder)
    report_parts(parts)
    touched = {batch: touched_by(choices, asked, answers[batch]) for batch in BATCHES}
    finish(told, report(taken, touched, choices))


def touched_by(choices: Choices, asked: list[list[int]], answers: list[list[int]]) -> float:
    """Return the experts of a layer that a step of these answers touches in the mean."""
    sequences = [prompt + answer for prompt, answer in zip(asked, answers, strict=False)]
    return choices.touched(sequences, PROMPT)


def report_parts(parts: dict[int, dict[str, float]]) -> None:
    """Print where the time of a step goes."""
    print_table(
        "Milliseconds of a step by part",
        ("part", *(f"{batch} sequences" for batch in parts)),
        [(name, *(f"{1e3 * seconds[name]:.2f}" for seconds in parts.values())) for name in next(iter(parts.values()))],
    )


def report(taken: dict[str, list[float]], touched: dict[int, float], choices: Choices) -> dict[str, float]:
    """Print what was taken; return the ratios."""
    median = {name: statistics.median(values) for name, values in taken.items()}
    limit = {}
    for batch in BATCHES:
        read = step_bytes(choices.config, touched=touched[batch], sequences=batch, length=PROMPT + TOKENS / 2)
        limit[batch] = batch * median["ceiling"] / read
    print_table(
        f"Tokens a second; memory is read at {median['ceiling'] / 1e9:.1f} GB/s",
        ("sequences", "experts touched", "limit", "native", "over HTTP", "llama.cpp", "of the limit", "of llama.cpp"),
        [
            (
                batch,
                f"{touched[batch]:.1f}",
                f"{limit[batch]:.0f}",
                spread(taken[f"native {batch}"]),
                spread(taken[f"http {batch}"]) if batch in OVER_HTTP else "",
                spread(taken[f"llama.cpp {batch}"]),
                f"{median[f'native {batch}'] / limit[batch]:.2f}",
                f"{median[f'native {batch}'] / median[f'llama.cpp {batch}']:.2f}",
            )
            for batch in BATCHES
        ],
    )
    print_table(
        f"Tokens of a prompt of {LONG} a second",
        ("native", "llama.cpp"),
        [(spread(taken["native prefill"]), spread(taken["llama.cpp prefill"]))],
    )
    against = {f"b{batch}_vs_llamacpp": median[f"native {batch}"] / median[f"llama.cpp {batch}"] for batch in BATCHES}
    of_limit = {f"b{batch}_of_limit": median[f"native {batch}"] / limit[batch] for batch in BATCHES}
    http = {f"http_of_engine_{batch}": median[f"http {batch}"] / median[f"native {batch}"] for batch in OVER_HTTP}
    prefill = median["native prefill"] / median["llama.cpp prefill"]
    return {**against, **of_limit, "prefill_vs_llamacpp": prefill, **http}


if __name__ == "__main__":
    main()
