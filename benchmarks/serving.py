"""Tokens a second of the native engine: against the memory's limit, llama.cpp, vLLM, and itself behind its HTTP API.

The model is a random Arctic of 466M parameters, in FP8 here, in Q8_0 with llama.cpp and in bf16, all that it has for
Arctic on CPUs, with vLLM; prompts differ, so that each sequence has experts of its own. The limit is what the memory
allows: the bytes that a step has to read, at the rate at which the same process reads memory. Then a real model,
SmolLM2: imported and in FP8 here, against the Llama that it was with llama.cpp, in Q8_0, which is as many bytes a
weight. All are measured in turn, several rounds, greedily, 128 tokens a request.

Where the processor multiplies bf16, rows are rounded to it (`engine.options.row_format`), as vLLM does; llama.cpp
rounds them to 8 bits with a scale for 32. The engine that keeps all bits is measured beside it there.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from arctic_model.config import ArcticConfig
from arctic_workers.control.cores import available_cores
from arctic_workers.inference.engines.native.kernel.library import multiplies_bf16
from benchmarks.compiled import ReadCeiling
from benchmarks.form import (
    arguments,
    finish,
    in_alternation,
    note,
    print_table,
    ratio,
    repeated,
    spread,
    wait_for_quiet,
)
from benchmarks.models import imported_gguf, imported_model, prompts, random_gguf, random_model
from benchmarks.native import InProcess, group_of, served
from benchmarks.peers import Peer, llama_cpp, vllm
from benchmarks.touched import Choices, step_bytes

BATCHES = (1, 4, 16, 64)
OVER_HTTP = (1, 16, 64)
AGAINST_VLLM = (1, 16)
PROMPT = 32
TOKENS = 128
LONG = 512
"""Tokens of the prompt whose reading is measured."""
SPEC = {"attention": {"maxLength": 1024}, "batching": {"maxSequences": 64}}
"""A random model goes in circles: what proposals gain there says nothing of texts."""
IN_BF16 = {"engine": {"name": "native", "options": {"row_format": "bf16"}}}


def tuned_threads(measure: Callable[[int], float], cores: int) -> int:
    """Return the number of threads with which a peer is fastest at batch 1."""
    return max(range(1, cores + 1), key=measure)


def main() -> None:
    """Print the tables and the figures."""
    told = arguments(__doc__, "one round, without vLLM")
    cores = available_cores()
    folder, asked = random_model(), prompts(max(BATCHES), PROMPT)
    long = [token for prompt in asked for token in prompt][:LONG]
    ceiling = ReadCeiling(cores)
    rounded = multiplies_bf16()
    fastest = IN_BF16 if rounded else {}
    with ExitStack() as stack:
        places = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peer = stack.enter_context(llama_cpp(random_gguf(), asked, TOKENS))
        others = None if told.quick else stack.enter_context(vllm(folder, asked[: max(AGAINST_VLLM)], TOKENS))
        engine = InProcess(group_of(folder, places, **SPEC, **fastest)[0])
        exact = InProcess(group_of(folder, places, **SPEC)[0]) if rounded else None
        service = stack.enter_context(served(group_of(folder, places, **SPEC, **fastest)[0]))
        real = stack.enter_context(real_model(places, fastest))
        wait_for_quiet()
        threads = tuned_threads(lambda count: peer.decode(1, count), cores)
        note(f"llama.cpp is fastest with {threads} threads")
        measures: dict[str, Callable[[], float]] = {"ceiling": ceiling.measure}
        for batch in BATCHES:
            measures[f"native {batch}"] = repeated(partial(engine.decode, asked[:batch], TOKENS))
            measures[f"llama.cpp {batch}"] = repeated(partial(peer.decode, batch, threads))
            if exact:
                measures[f"exact {batch}"] = repeated(partial(exact.decode, asked[:batch], TOKENS))
            if batch in OVER_HTTP:
                measures[f"http {batch}"] = repeated(partial(service.decode, asked[:batch], TOKENS))
            if others and batch in AGAINST_VLLM:
                measures[f"vLLM {batch}"] = partial(others.decode, batch, cores)
        measures["native prefill"] = lambda: engine.prefill(long)
        measures["llama.cpp prefill"] = lambda: peer.prefill(LONG, cores)
        measures |= real.measures(cores)
        if others is None:
            note("vLLM is left out: it takes a whole run and its environment (`arctic cluster environment vllm`)")
        taken = in_alternation(1 if told.quick else 5, measures)
        parts = {batch: engine.seconds_by_part(asked[:batch], TOKENS) for batch in BATCHES}
        answers = {batch: engine.answers(asked[:batch], TOKENS) for batch in BATCHES}
        engine.stop()
        if exact:
            exact.stop()
    choices = Choices(folder)
    report_parts(parts)
    touched = {batch: touched_by(choices, asked, answers[batch]) for batch in BATCHES}
    ratios = {**report(taken, touched, choices), **report_exact(taken)}
    finish(told, {**ratios, **report_vllm(taken), **report_real(taken, real.config)})


@dataclass(frozen=True)
class RealModel:
    """A real model's two engines."""

    config: ArcticConfig
    engine: InProcess
    peer: Peer

    def measures(self, cores: int) -> dict[str, Callable[[], float]]:
        """Return what is measured of it."""
        threads = tuned_threads(lambda count: self.peer.decode(1, count), cores)
        return {
            "native imported": repeated(partial(self.engine.decode, _asked_of_real(self.config), TOKENS)),
            "llama.cpp imported": repeated(partial(self.peer.decode, 1, threads)),
        }


@contextmanager
def real_model(places: Path, fastest: dict[str, Any]) -> Iterator[RealModel]:
    """Start both engines of the imported model, and end them."""
    folder = imported_model()
    config = ArcticConfig.from_folder(folder)
    with llama_cpp(imported_gguf(), _asked_of_real(config), TOKENS) as peer:
        spec = {"attention": {"maxLength": 512}, "batching": {"maxSequences": 1}, **fastest}
        engine = InProcess(group_of(folder, places, **spec)[0])
        try:
            yield RealModel(config, engine, peer)
        finally:
            engine.stop()


def _asked_of_real(config: ArcticConfig) -> list[list[int]]:
    return prompts(1, PROMPT, config.vocab_size)


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
    limits = {}
    for batch in BATCHES:
        read = step_bytes(choices.config, touched=touched[batch], sequences=batch, length=PROMPT + TOKENS / 2)
        limits[batch] = [batch * ceiling / read for ceiling in taken["ceiling"]]
    against = {batch: ratio(taken[f"native {batch}"], taken[f"llama.cpp {batch}"]) for batch in BATCHES}
    of_limit = {batch: ratio(taken[f"native {batch}"], limits[batch]) for batch in BATCHES}
    http = {batch: ratio(taken[f"http {batch}"], taken[f"native {batch}"]) for batch in OVER_HTTP}
    print_table(
        f"Tokens a second; memory is read at {statistics.median(taken['ceiling']) / 1e9:.1f} GB/s",
        ("sequences", "experts touched", "limit", "native", "over HTTP", "llama.cpp", "of the limit", "of llama.cpp"),
        [
            (
                batch,
                f"{touched[batch]:.1f}",
                f"{statistics.median(limits[batch]):.0f}",
                spread(taken[f"native {batch}"]),
                spread(taken[f"http {batch}"]) if batch in OVER_HTTP else "",
                spread(taken[f"llama.cpp {batch}"]),
                f"{of_limit[batch]:.2f}",
                f"{against[batch]:.2f}",
            )
            for batch in BATCHES
        ],
    )
    print_table(
        f"Tokens of a prompt of {LONG} a second",
        ("native", "llama.cpp"),
        [(spread(taken["native prefill"]), spread(taken["llama.cpp prefill"]))],
    )
    return {
        **{f"b{batch}_vs_llamacpp": value for batch, value in against.items()},
        **{f"b{batch}_of_limit": value for batch, value in of_limit.items()},
        "prefill_vs_llamacpp": ratio(taken["native prefill"], taken["llama.cpp prefill"]),
        **{f"http_of_engine_{batch}": value for batch, value in http.items()},
    }


def compared(
    taken: dict[str, list[float]], title: str, ours: tuple[str, str], others: tuple[str, str]
) -> dict[int, float]:
    """Print two against each other, and return the ratios by batch; of each is told its name there and its column."""
    (our_name, our_column), (name, column) = ours, others
    batches = [batch for batch in BATCHES if {f"{our_name} {batch}", f"{name} {batch}"} <= taken.keys()]
    ratios = {batch: ratio(taken[f"{our_name} {batch}"], taken[f"{name} {batch}"]) for batch in batches}
    if batches:
        print_table(
            f"{title}, tokens a second",
            ("sequences", our_column, column, f"of {name}"),
            [
                (batch, spread(taken[f"{our_name} {batch}"]), spread(taken[f"{name} {batch}"]), f"{ratios[batch]:.2f}")
                for batch in batches
            ],
        )
    return ratios


def report_exact(taken: dict[str, list[float]]) -> dict[str, float]:
    """Print what was taken with all bits of rows, where they are rounded else; return the ratios."""
    ratios = compared(taken, "With all bits of rows", ("exact", "native, all bits"), ("llama.cpp", "llama.cpp"))
    return {f"exact_b{batch}_vs_llamacpp": value for batch, value in ratios.items()}


def report_vllm(taken: dict[str, list[float]]) -> dict[str, float]:
    """Print what was taken of vLLM, where it was; return the ratios."""
    ratios = compared(taken, "Against vLLM", ("native", "native, FP8"), ("vLLM", "vLLM, bf16"))
    return {f"b{batch}_vs_vllm": value for batch, value in ratios.items()}


def report_real(taken: dict[str, list[float]], config: ArcticConfig) -> dict[str, float]:
    """Print what was taken of the imported model; return the ratios."""
    read = step_bytes(config, touched=config.num_experts_per_tok, sequences=1, length=PROMPT + TOKENS / 2)
    limits = [ceiling / read for ceiling in taken["ceiling"]]
    of_limit = ratio(taken["native imported"], limits)
    of_llamacpp = ratio(taken["native imported"], taken["llama.cpp imported"])
    print_table(
        "SmolLM2 at one sequence, tokens a second",
        ("limit", "native", "llama.cpp", "of the limit", "of llama.cpp"),
        [
            (
                f"{statistics.median(limits):.0f}",
                spread(taken["native imported"]),
                spread(taken["llama.cpp imported"]),
                f"{of_limit:.2f}",
                f"{of_llamacpp:.2f}",
            )
        ],
    )
    return {"imported_b1_vs_llamacpp": of_llamacpp, "imported_b1_of_limit": of_limit}


if __name__ == "__main__":
    main()
