"""The weights of a committed checkpoint as a model's folder, without the ranks that train it.

So a stage can be judged beside the run rather than in its way: on another machine, or by another process of this one.
"""

from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from arctic_model.config import ArcticConfig
from arctic_model.names import tensor_shapes
from arctic_model.weights import TensorEntry, write_config, write_weights
from arctic_workers.training.checkpoint.checkpointer import fill, index_of
from arctic_workers.training.checkpoint.store import MANIFEST, Manifest, damage
from arctic_workers.training.data import tokenizer
from arctic_workers.training.data.prepare import TOKENIZER_FOLDER

_DTYPE = torch.bfloat16  # as exports are


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder is one of a run's checkpoints."""
    return (folder / MANIFEST).is_file()


def write_model(checkpoint: Path, folder: Path) -> None:
    """Write a checkpoint's weights, bf16, with configuration and tokenizer, into a folder that exists.

    Raises:
        ValueError: the checkpoint is damaged, or is none of a whole model; the message says what to do.
        Refused: its run's tokenizer is missing.
    """
    if (found := damage(checkpoint)) is not None:
        raise ValueError(f"{checkpoint} is damaged: {found}: name another one of the run")
    manifest = Manifest.read(checkpoint)
    assert manifest is not None, "a checkpoint that is not damaged has one"
    if "config" not in (progress := manifest.progress) or progress["base"] is not None:
        raise ValueError(
            f"{checkpoint} is of an adapter, or from before checkpoints described their model: wait for the export of "
            "its run, and name that"
        )
    config = ArcticConfig.from_dict(progress["config"], str(checkpoint))
    shapes = tensor_shapes(config)
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(safe_open(checkpoint / name, framework="pt")) for name in sorted(manifest.files)
        }
        index = index_of(files)

        def fetch(name: str) -> Tensor:
            flat = torch.empty(shapes[name]).flatten()
            fill(flat, 0, index["master", name], name)
            return flat.view(shapes[name]).to(_DTYPE)

        write_config(folder, config.replace(torch_dtype="bfloat16"))
        write_weights(folder, [TensorEntry(name, shape, _DTYPE) for name, shape in shapes.items()], fetch)
    tokenizer.copy(checkpoint.resolve().parents[1] / TOKENIZER_FOLDER, folder)
