"""A checkpoint as a model's folder: what the ranks held together, without them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from arctic_model.config import ArcticConfig
from arctic_model.names import tensor_shapes
from arctic_workers.training.checkpoint.checkpointer import Checkpointer, Position
from arctic_workers.training.checkpoint.model import is_checkpoint, write_model
from arctic_workers.training.checkpoint.store import MANIFEST, CheckpointStore, Manifest
from arctic_workers.training.checkpoint.zero import KINDS, Piece
from arctic_workers.training.data import tokenizer


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run's checkpoint that two ranks wrote, cut in the middle of a tensor, and the weights in it."""
    run = tmp_path / "run"
    (run / "tokenizer").mkdir(parents=True)
    tokenizer.save(tokenizer.train(["one text", "another"], 300), run / "tokenizer")
    store = CheckpointStore(run, 1)
    store.claim("u")
    config = ArcticConfig.preset("arctic-tiny").with_vocab_size(300)
    shapes = {name: list(shape) for name, shape in tensor_shapes(config).items()}
    weights = {name: torch.randn(*shape) for name, shape in shapes.items()}
    ranks = [Checkpointer(store, rank, 2, shapes, 2, str) for rank in range(2)]
    for rank, checkpointer in enumerate(ranks):
        pieces = [half(name, tensor, rank) for name, tensor in weights.items()]
        checkpointer.start(pieces, Position(4, 40, "s", True, {"config": config.to_dict(), "base": None}))
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


@pytest.mark.parametrize("progress", [{}, {"base": {"weights": "..."}}])
def test_one_of_no_whole_model_is_refused(made: tuple[Path, Any], tmp_path: Path, progress: dict[str, Any]) -> None:
    checkpoint, _ = made
    manifest = Manifest.read(checkpoint)
    assert manifest is not None
    described = {"config": manifest.progress["config"]} if progress else {}
    content = replace(manifest, progress=described | progress).to_json()
    (checkpoint / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"wait for the export of its run"):
        write_model(checkpoint, tmp_path)
