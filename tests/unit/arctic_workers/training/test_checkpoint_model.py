"""A checkpoint as a model's folder: what the ranks held together, without them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import TrainingWorld
from arctic_model.config import ArcticConfig
from arctic_model.names import tensor_shapes
from arctic_workers.training.checkpoint.checkpointer import Checkpointer, Position
from arctic_workers.training.checkpoint.model import is_checkpoint, write_model
from arctic_workers.training.checkpoint.store import CheckpointStore
from arctic_workers.training.checkpoint.zero import KINDS, Piece
from arctic_workers.training.data import tokenizer
from arctic_workers.training.record import machine, write_record
from arctic_workers.training.start import find_start, fit_vocabulary


@pytest.fixture
def made(spec_of: Callable[..., ArcticTrainingSpec], tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run's checkpoint that two ranks wrote, cut in the middle of a tensor, and the weights in it."""
    run = tmp_path / "run"
    (run / "tokenizer").mkdir(parents=True)
    tokenizer.save(tokenizer.train(["one text", "another"], 300), run / "tokenizer")
    spec = spec_of([{"tokens": 100, "sequenceLength": 16}], 16)
    world = TrainingWorld(
        namespace="ns", name="t", uid="u", first_host="h", spec=spec, attempt=1, epoch=1, run_folder=str(run)
    )
    store = CheckpointStore(run, 1)
    store.claim("u")
    write_record(world, store, [machine()])
    config = fit_vocabulary(world, find_start(world).config, tokenizer.TextEncoder(run / "tokenizer"))
    shapes = {name: list(shape) for name, shape in tensor_shapes(config).items()}
    weights = {name: torch.randn(*shape) for name, shape in shapes.items()}
    ranks = [Checkpointer(store, rank, 2, shapes, 2, str) for rank in range(2)]
    for rank, checkpointer in enumerate(ranks):
        checkpointer.start(
            [half(name, tensor, rank) for name, tensor in weights.items()], Position(4, 40, "s", True, {})
        )
    for checkpointer in reversed(ranks):
        checkpointer.finish()
    return store.folder(4), weights


def half(name: str, tensor: torch.Tensor, rank: int) -> Piece:
    cut = tensor.numel() // 3
    values = tensor.flatten()[:cut] if rank == 0 else tensor.flatten()[cut:]
    return Piece(name, 0 if rank == 0 else cut, {kind: values.clone() * (kind == "master") for kind in KINDS})


def test_it_holds_the_weights_the_configuration_and_the_tokenizer(made: tuple[Path, Any], tmp_path: Path) -> None:
    checkpoint, weights = made
    assert is_checkpoint(checkpoint)
    assert not is_checkpoint(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    write_model(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    assert tensors.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensors[name], tensor.bfloat16(), rtol=0, atol=0)
    assert ArcticConfig.from_folder(folder).torch_dtype == "bfloat16"
    assert (folder / "tokenizer.json").is_file()


def test_a_damaged_one_is_refused(made: tuple[Path, Any], tmp_path: Path) -> None:
    checkpoint, _ = made
    shard = next(checkpoint.glob("shard-00001*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"is damaged: shard-00001.* name another one of the run"):
        write_model(checkpoint, tmp_path)


def test_one_that_began_from_other_weights_is_refused(made: tuple[Path, Any], tmp_path: Path) -> None:
    checkpoint, _ = made
    [record] = checkpoint.parents[1].glob("attempts/*/run.json")
    record.write_text(record.read_text().replace('"preset": "arctic-tiny"', '"from": {"uri": "file:///weights"}'))
    with pytest.raises(ValueError, match=r"began from other weights.* wait for its export"):
        write_model(checkpoint, tmp_path)
