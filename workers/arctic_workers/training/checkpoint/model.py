"""The weights of a committed checkpoint as a model's folder, without the ranks that train it.

So a stage can be judged beside the run rather than in its way: on another machine, or by another process of this one.
"""

from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import TrainingWorld
from arctic_model.config import ArcticConfig
from arctic_model.names import tensor_shapes
from arctic_model.weights import TensorEntry, write_config, write_weights
from arctic_workers.training.checkpoint.checkpointer import fill, index_of
from arctic_workers.training.checkpoint.store import MANIFEST, Manifest, damage
from arctic_workers.training.data import tokenizer
from arctic_workers.training.data.prepare import TOKENIZER_FOLDER
from arctic_workers.training.record import newest_record
from arctic_workers.training.start import find_start, fit_vocabulary

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
    run = checkpoint.resolve().parents[1]
    config = _config_of(run)
    shapes = tensor_shapes(config)
    if {name: list(shape) for name, shape in shapes.items()} != manifest.tensors:
        raise ValueError(f"{checkpoint} does not hold the model that {run} was begun with: name another one of the run")
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
    tokenizer.copy(run / TOKENIZER_FOLDER, folder)


def _config_of(run: Path) -> ArcticConfig:
    record = newest_record(run)
    spec = ArcticTrainingSpec.model_validate(record["manifest"])
    if spec.model.from_ is not None:
        raise ValueError(
            f"{run} began from other weights, which its checkpoints do not describe: wait for its export, and name that"
        )
    # A model that a training makes takes nothing of its world but the specification.
    world = TrainingWorld(
        namespace="default",
        name="checkpoint",
        uid="",
        first_host="localhost",
        spec=spec,
        attempt=record["attempt"],
        epoch=record["epoch"],
        run_folder=str(run),
    )
    encoder = tokenizer.TextEncoder(run / TOKENIZER_FOLDER)
    return fit_vocabulary(world, find_start(world).config, encoder)
