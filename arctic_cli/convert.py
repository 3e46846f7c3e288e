"""`arctic import`, `export` and `quantize`: models from and for others' software. Files only, nothing is started."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from arctic_cli import small_model
from arctic_cluster.files import readable_by_all

if TYPE_CHECKING:
    from torch import Tensor

    from arctic_model.llama import Llama

# What reads weights imports torch, for seconds: each command does so when it runs.


@contextlib.contextmanager
def _working(title: str) -> Iterator[Callable[[float], None]]:
    """Show the share that is done, for whoever has a terminal; faults of files are sentences for people.

    What is written meanwhile can be read by all, as pods have to.
    """
    try:
        with readable_by_all(), click.progressbar(length=1000, label=title, file=sys.stderr) as bar:
            yield lambda share: bar.update(int(1000 * share) - bar.pos)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None


def _llama(source: str) -> "Llama":
    from arctic_model.llama import open_llama

    return open_llama(small_model.smollm2() if source == small_model.NAME else Path(source))


@click.command("import")
@click.argument("source")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--experts", default=8, show_default=True, type=click.IntRange(1), help="Experts of a hybrid layer.")
@click.option(
    "--hybrid-every",
    default=6,
    show_default=True,
    type=click.IntRange(2),
    help="Which layers of the Arctic are hybrid: the N-th, the 2N-th and so on; those in between are the source's.",
)
def import_(source: str, folder: Path, experts: int, hybrid_every: int) -> None:
    """Make an Arctic in FOLDER that computes what a Llama computes, with its tokenizer and chat template.

    SOURCE is the folder of a LlamaForCausalLM in the Hugging Face layout, or a GGUF file of one, or `smollm2`: a small
    real model (SmolLM2-135M-Instruct), which is downloaded once.
    """
    from arctic_model.llama import import_llama

    with _working("importing") as progress:
        made = import_llama(_llama(source), folder, experts=experts, every=hybrid_every, progress=progress)
    dense = made.num_hidden_layers - made.expert_layers
    click.echo(f"{folder}: {dense} dense layers and {made.expert_layers} hybrid ones of {experts} experts")


@click.command()
@click.option("--gguf", is_flag=True, required=True, help="For llama.cpp: its architecture `arctic`.")
@click.option(
    "--weights",
    type=click.Choice(["F32", "F16", "BF16", "Q8_0"]),
    default="F32",
    show_default=True,
    help="How matrices are stored; norms and gates stay F32.",
)
@click.option("--no-tokenizer", is_flag=True, help="Leave the tokenizer out; llama.cpp then takes tokens alone.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
def export(gguf: bool, weights: str, no_tokenizer: bool, folder: Path, file: Path) -> None:  # noqa: ARG001 (the only form)
    """Write the checkpoint in FOLDER to FILE, as other software reads it."""
    from arctic_model.gguf.writer import Format, export_gguf

    form: Format = weights  # type: ignore[assignment]  # click has checked it
    with _working("exporting") as progress:
        export_gguf(folder, file, weights=form, tokenizer=not no_tokenizer, progress=progress)
    click.echo(f"{file}: {file.stat().st_size / 1e6:.0f} MB")


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("new_folder", type=click.Path(path_type=Path))
@click.option(
    "--layout",
    type=click.Choice(["compressed-tensors", "modelopt", "fp8"]),
    default="compressed-tensors",
    show_default=True,
    help="How config.json and scales are written; fp8 is DeepSeek's, which TensorRT-LLM takes by blocks.",
)
@click.option(
    "--scales",
    type=click.Choice(["tensor", "channel", "block"]),
    default="channel",
    show_default=True,
    help="What shares a scale: a matrix, an output channel, or a block of 128 x 128.",
)
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Text in UTF-8: hidden states by layer and perplexity on its beginning, before and after.",
)
def quantize(folder: Path, new_folder: Path, layout: str, scales: str, text: Path | None) -> None:
    """Write the checkpoint in FOLDER to NEW_FOLDER with weights in FP8, and say what rounding changed."""
    from arctic_model.quantization import Quantization
    from arctic_model.quantize import compare, quantize_checkpoint

    stored = Quantization(layout, scales)  # type: ignore[arg-type]  # click has checked them
    with _working("quantising") as progress:
        if (layout, scales) == ("fp8", "channel"):
            raise ValueError("--layout fp8 has a scale a tensor or a block: write --scales tensor or block")
        tokens_BT = None if text is None else _tokens(folder, text)
        errors = quantize_checkpoint(folder, new_folder, stored, progress=progress)
    compared = None
    if tokens_BT is not None:
        with _working("comparing") as progress:
            compared = compare(folder, new_folder, tokens_BT, progress)
    for number, error in enumerate(errors):
        states = f", hidden states {compared.layers[number]:.2%}" if compared else ""
        worst = f"{error.worst} {error.worst_relative:.2%}"
        click.echo(f"layer {error.layer}: weights {error.relative:.2%} (most: {worst}){states}")
    if compared:
        before, after = compared.perplexities
        click.echo(f"perplexity {before:.3f} before, {after:.3f} in FP8 ({after / before - 1:+.2%})")
    click.echo(f"{new_folder}: {stored.describe()}")


_SEQUENCES, _LENGTH = 16, 512
"""How much of a text is compared on."""


def _tokens(folder: Path, text: Path) -> "Tensor":
    import torch

    from arctic_workers.chat.tokenizer import read_tokenizer

    tokens = read_tokenizer(folder).encode(text.read_text(encoding="utf-8")[: 16 * _SEQUENCES * _LENGTH]).ids
    length = min(_LENGTH, len(tokens))
    if length < 2:
        raise ValueError(f"{text} is less than two tokens: name a longer text")
    count = min(_SEQUENCES, len(tokens) // length)
    return torch.tensor(tokens[: count * length]).view(count, length)
