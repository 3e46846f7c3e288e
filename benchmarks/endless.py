"""A million tokens of one sequence through the native engine: whether memory stays and speed keeps.

A random `arctic-tiny` with a window of 1024 tokens and 4 sinks (Xiao et al. 2023, arXiv 2309.17453) generates greedily,
in this process. Once the window is full nothing may grow any more: `memory_ratio` is the greatest resident memory over
the least, `speed_ratio` the speed of the last tenth of the tokens over that of the first tenth, which follow each other
on the same machine within half an hour.

Then a real model, SmolLM2, reads a text three times its context: its perplexity stays with sinks, and not with a plain
window of the same reach.
"""

import os
import tempfile
import time
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from arctic_cli.corpus import prepare_corpus
from arctic_cluster.paths import CORPUS, default_volumes
from arctic_model.config import ArcticConfig
from arctic_model.parallel import plan_inference
from arctic_workers.control.cores import available_cores
from arctic_workers.inference.engine import Request, Sampling
from arctic_workers.inference.engines.native.blocks import BLOCK_SIZE
from arctic_workers.inference.engines.native.cache import PagedCache
from arctic_workers.inference.engines.native.engine import NativeEngine
from arctic_workers.inference.engines.native.runner import compute_of, load_slice
from arctic_workers.inference.engines.native.step import Part
from arctic_workers.inference.engines.native.window import CHUNK, Window
from arctic_workers.inference.http.text import Text
from benchmarks.drawing import Chart
from benchmarks.form import arguments, draw, finish, note, print_table, wait_for_quiet
from benchmarks.models import imported_model, prompts, random_model
from benchmarks.native import InProcess, group_of
from benchmarks.processes import resident

WINDOW = Window(1024, 4)
CONFIG = ArcticConfig.preset("arctic-tiny").replace(max_position_embeddings=2048)
TOKENS, QUICK = 1_000_000, 50_000
READ, QUICK_READ = 24_576, 2_048
"""Tokens of the text."""
PIECE = 512
"""Tokens whose perplexity is taken together."""
_SAMPLES = 100
"""Looks at clock and memory."""


@dataclass(frozen=True)
class Look:
    """After so many tokens."""

    tokens: int
    seconds: float
    memory: int
    """Resident bytes."""


def watch(folder: Path, window: Window, tokens: int) -> list[Look]:
    """Generate so many tokens at least; return what was seen from when the window had filled on."""
    attention = {"window": window.size, "sinks": window.sinks, "maxLength": "unlimited"}
    with tempfile.TemporaryDirectory() as scratch:
        [group] = group_of(folder, Path(scratch), attention=attention, batching={"maxSequences": 1})
        started = InProcess(group)
        try:
            return started.wait(_looks(started.engine, window, tokens))
        finally:
            started.stop()


async def _looks(engine: NativeEngine, window: Window, tokens: int) -> list[Look]:
    filled = 2 * window.reach
    every = -(-(tokens - filled) // _SAMPLES)
    looks = []
    [prompt] = prompts(1, 64, CONFIG.vocab_size)
    request = Request(tuple(prompt), Sampling(filled + _SAMPLES * every + 1, temperature=0.0))
    count = 0
    async with aclosing(engine.generate(request)) as outputs:
        async for _ in outputs:
            count += 1
            if count >= filled and (count - filled) % every == 0:
                looks.append(Look(count, time.monotonic(), resident()))
                if (len(looks) - 1) % (_SAMPLES // 10) == 0:
                    note(f"{count:,} tokens, {looks[-1].memory / 2**20:.1f} MiB")
    return looks


def speed(looks: list[Look], part: slice) -> float:
    """Tokens a second from the first to the last of some looks."""
    chosen = looks[part]
    return (chosen[-1].tokens - chosen[0].tokens) / (chosen[-1].seconds - chosen[0].seconds)


@torch.inference_mode()
def losses(folder: Path, tokens: list[int], window: Window | None) -> Tensor:
    """Return the loss of each token but the first, in nats: what a model says of a text far longer than its context.

    Beside a window with sinks, a plain one of the same reach (`Window(reach, 0)`) shows what the sinks are good for.
    """
    config = ArcticConfig.from_folder(folder)
    [part] = plan_inference(config, pipeline=1).slices
    model = load_slice(folder, config, part, "bf16", lambda _: None)
    whole = -(-len(tokens) // BLOCK_SIZE)
    table = list(range(whole if window is None else min(whole, window.blocks(BLOCK_SIZE))))
    cache = PagedCache(
        part.layers,
        blocks=len(table),
        block_size=BLOCK_SIZE,
        heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        dtype=torch.bfloat16,
        window=window,
    )
    compute, dropped, found = compute_of(model, cache), 0, []
    for start in range(0, len(tokens) - 1, CHUNK):
        read = tuple(tokens[start : min(start + CHUNK, len(tokens) - 1)])
        end = start + len(read)
        if window is not None:
            dropped = window.slide(table, dropped, end, BLOCK_SIZE)
        x_TD = compute.run([Part(start, read, tuple(table), None, dropped=dropped)], None)
        logits_TV, _ = compute.logits(x_TD, range(len(read)))
        found.append(functional.cross_entropy(logits_TV, torch.tensor(tokens[start + 1 : end + 1]), reduction="none"))
    return torch.cat(found)


def perplexities(losses_T: Tensor, piece: int) -> list[float]:
    """Perplexity of each piece of so many tokens: the curve over the length."""
    return [float(losses.mean().exp()) for losses in torch.split(losses_T, piece)]


def real_text(folder: Path, tokens: int) -> list[int]:
    """Return the first tokens of the corpus's general texts, by a model's tokenizer."""
    corpus = default_volumes() / CORPUS
    prepare_corpus(corpus)
    encode, read = Text(folder).encode, list[int]()
    for file in sorted((corpus / "general").glob("*.txt")):
        read += encode(file.read_text(), special=False)
        if len(read) >= tokens:
            break
    return read[:tokens]


def perplexity_curves(tokens: int) -> dict[str, list[float]]:
    """Perplexity of each piece of a text of so many tokens, with sinks and with a plain window."""
    folder = imported_model()
    text = real_text(folder, tokens)
    windows = {f"{WINDOW.sinks} sinks": WINDOW, "no sinks": Window(WINDOW.reach, 0)}
    return {name: perplexities(losses(folder, text, window), PIECE) for name, window in windows.items()}


def chart_of_looks(looks: list[Look], tenth: int) -> Chart:
    """Show memory and speed over the tokens, each against its beginning."""
    begin = speed(looks, slice(0, tenth + 1))
    lines = {
        "resident memory": [(look.tokens, look.memory / looks[0].memory) for look in looks],
        "tokens a second": [
            (looks[end].tokens, speed(looks, slice(end - tenth, end + 1)) / begin) for end in range(tenth, len(looks))
        ],
    }
    return Chart(f"One sequence, window {WINDOW.size}", "tokens", "of the beginning's", lines)


def chart_of_perplexities(curves: dict[str, list[float]]) -> Chart:
    """Show the curves over the text."""
    context = ArcticConfig.from_folder(imported_model()).max_position_embeddings
    lines = {
        name: [(PIECE * (number + 1), value) for number, value in enumerate(curve)] for name, curve in curves.items()
    }
    title = f"SmolLM2-135M, context {context:,}, window {WINDOW.size}"
    return Chart(title, "tokens read", "perplexity", lines, logarithmic=True)


def main() -> None:
    """Measure, print."""
    told = arguments(__doc__, f"{QUICK:,} tokens instead of {TOKENS:,}")
    folder = random_model(CONFIG)
    # A layer of this model has less work than two threads take to meet.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    wait_for_quiet()
    looks = watch(folder, WINDOW, QUICK if told.quick else TOKENS)
    tenth = len(looks) // 10
    first, last = speed(looks, slice(0, tenth + 1)), speed(looks, slice(-tenth - 1, None))
    memory = [look.memory for look in looks]
    figures = {"memory_ratio": max(memory) / min(memory), "speed_ratio": last / first, "tokens": looks[-1].tokens}
    print_table(
        f"One sequence of {looks[-1].tokens:,} tokens, window {WINDOW.size}, sinks {WINDOW.sinks}",
        ("after the window has filled", "least", "greatest"),
        (
            ("resident memory, MiB", f"{min(memory) / 2**20:.1f}", f"{max(memory) / 2**20:.1f}"),
            ("tokens/s, first and last tenth", f"{first:.0f}", f"{last:.0f}"),
        ),
    )
    draw(told, chart_of_looks(looks, tenth), "endless")
    torch.set_num_threads(available_cores())
    curves = perplexity_curves(QUICK_READ if told.quick else READ)
    filled = -(-WINDOW.reach // PIECE)
    print_table(
        "Perplexity of a real model on a text",
        ("", "before the window has filled", "after, greatest", "last"),
        [
            (name, *(f"{value:.1f}" for value in (max(curve[:filled]), max(curve[filled:]), curve[-1])))
            for name, curve in curves.items()
        ],
    )
    draw(told, chart_of_perplexities(curves), "perplexity")
    finish(told, figures, less_is_better=("memory_ratio",), unjudged=("tokens",))


if __name__ == "__main__":
    main()
