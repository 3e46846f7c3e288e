"""Make a checkpoint's weights FP8, in a layout that others read too, and say what that costs.

A tensor at a time, and of the model a layer at a time: memory for one of them is enough. Embedding, output matrix,
norms and gates stay in bf16.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from arctic_model import fp8
from arctic_model.config import CONFIG_FILE
from arctic_model.model import ArcticModel
from arctic_model.names import tensor_shapes
from arctic_model.quantization import KEY, MODELOPT_FILE, Quantization, modelopt_file, quantization_config
from arctic_model.weights import (
    DEFAULT_SHARD_BYTES,
    Checkpoint,
    TensorEntry,
    atomic_folder,
    load_weights,
    write_weights,
)

KEPT = ("model.embed_tokens.weight", "lm_head.weight", "block_sparse_moe.gate.weight", "norm.weight")
"""Ends of the names of tensors that are not quantised."""
_KEPT_MODULES = {
    "compressed-tensors": ["lm_head", "re:.*block_sparse_moe.gate$"],
    "modelopt": ["lm_head", "*block_sparse_moe.gate"],
}
"""What layouts that have patterns call the modules of these."""
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")


class LayerError(NamedTuple):
    """What rounding changed in the weights of a layer: root mean square of the difference over that of the weights."""

    layer: int
    relative: float
    worst: str
    """The matrix with the greatest error, and that error."""
    worst_relative: float


def quantize_checkpoint(
    source: Path,
    target: Path,
    stored: Quantization,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Callable[[float], None] = lambda _: None,
) -> list[LayerError]:
    """Write `target`, which appears whole or not at all, and return what rounding changed, by layer.

    All other files of `source` are copied. `source` may be in FP8 itself: its numbers are then rounded a second time.
    Raises FileExistsError where `target` exists, CheckpointError or ValueError where `source` is at fault.
    """
    checkpoint = Checkpoint(source)
    shapes = tensor_shapes(checkpoint.config)
    checkpoint.check_names(list(shapes), checkpoint.config)
    kept = _KEPT_MODULES.get(stored.layout) or _kept_matrices(shapes)
    config = {**checkpoint.config.to_dict(), "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
    fetch = _Fetch(checkpoint, shapes, stored, progress)
    with atomic_folder(target) as temporary:
        for file in source.iterdir():
            if file.is_file() and ".safetensors" not in file.name and file.name not in (CONFIG_FILE, MODELOPT_FILE):
                shutil.copyfile(file, temporary / file.name)
        _write_json(temporary / CONFIG_FILE, {**config, KEY: quantization_config(stored, kept)})
        if stored.layout == "modelopt":
            _write_json(temporary / MODELOPT_FILE, modelopt_file(stored, kept))
        write_weights(temporary, _entries(shapes, stored), fetch, max_shard_bytes=max_shard_bytes)
    return fetch.errors()


def _kept_matrices(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """The modules of all matrices that are not quantised."""
    return [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2 and name.endswith(KEPT)]


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _entries(shapes: dict[str, tuple[int, ...]], stored: Quantization) -> list[TensorEntry]:
    entries = []
    for name, shape in shapes.items():
        if name.endswith(KEPT):
            entries.append(TensorEntry(name, shape, torch.bfloat16))
            continue
        scales = stored.scale_shape((shape[0], shape[1]))
        entries += [TensorEntry(name, shape, fp8.DTYPE), TensorEntry(stored.scale_name(name), scales, torch.float32)]
    return entries


class _Fetch:
    """What `write_weights` asks for, in the order of the entries: a scale comes right after its values."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        shapes: dict[str, tuple[int, ...]],
        stored: Quantization,
        progress: Callable[[float], None],
    ) -> None:
        self._checkpoint = checkpoint
        self._shapes = shapes
        self._stored = stored
        self._progress = progress
        self._scales: dict[str, Tensor] = {}
        self._squares: dict[str, tuple[float, float]] = {}
        self._read = 0

    def __call__(self, name: str) -> Tensor:
        if name in self._scales:
            return self._scales.pop(name)
        tensor = self._checkpoint.tensor(name, self._shapes[name])
        self._read += 1
        self._progress(self._read / len(self._shapes))
        if name.endswith(KEPT):
            return tensor.to(torch.bfloat16)
        values, scale = quantize_as(tensor, self._stored)
        wide = tensor.float()
        lost = wide - values.float() * spread(scale, self._stored, values.shape)
        self._squares[name] = (float(lost.square().sum()), float(wide.square().sum()))
        self._scales[self._stored.scale_name(name)] = scale.reshape(
            self._stored.scale_shape((wide.shape[0], wide.shape[1]))
        )
        return values

    def errors(self) -> list[LayerError]:
        """By layer, of all that was quantised."""
        layers: dict[int, dict[str, tuple[float, float]]] = {}
        for name, squares in self._squares.items():
            match = _LAYER.fullmatch(name)
            assert match
            layers.setdefault(int(match[1]), {})[match[2]] = squares
        return [_layer_error(layer, squares) for layer, squares in sorted(layers.items())]


def _layer_error(layer: int, squares: dict[str, tuple[float, float]]) -> LayerError:
    relative = {name: _root(lost, whole) for name, (lost, whole) in squares.items()}
    worst = max(relative, key=relative.__getitem__)
    total = _root(sum(lost for lost, _ in squares.values()), sum(whole for _, whole in squares.values()))
    return LayerError(layer, total, worst, relative[worst])


def _root(lost: float, whole: float) -> float:
    return math.sqrt(lost / whole) if whole else 0.0


def quantize_as(weight: Tensor, stored: Quantization) -> tuple[Tensor, Tensor]:
    """Round [out, in] to e4m3 values and fp32 scales: one, [out], or [ceil(out / block), ceil(in / block)]."""
    if stored.scales == "channel":
        return fp8.quantize(weight)
    if stored.scales == "tensor":
        values, scale = fp8.quantize(weight.reshape(1, -1))
        return values.view(weight.shape), scale
    return fp8.quantize_blocks(weight, stored.block)


def spread(scale: Tensor, stored: Quantization, shape: Sequence[int]) -> Tensor:
    """Return scales so that they multiply a weight of that shape, element by element."""
    if stored.scales != "block":
        return scale[:, None]
    return fp8.spread(scale, stored.block, shape)


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints of one model on a text."""

    layers: list[float]
    """How far hidden states after each layer are apart: root mean square, over that of the first's."""
    perplexities: tuple[float, float]


@torch.inference_mode()
def compare(
    first: Path, second: Path, tokens_BT: Tensor, progress: Callable[[float], None] = lambda _: None
) -> Comparison:
    """Run both over sequences of tokens, in fp32, a layer at a time. Raises CheckpointError and ValueError."""
    layers: list[float] = []
    config, greatest = Checkpoint(first).config, int(tokens_BT.max())
    if greatest >= config.vocab_size:
        raise ValueError(
            f"{first}: its tokenizer made token {greatest} of the text, and the model has {config.vocab_size}: it is "
            "another model's tokenizer"
        )
    count = config.num_hidden_layers
    for states in zip(_states(first, tokens_BT), _states(second, tokens_BT), strict=True):
        one, other = states
        if len(layers) < count:
            layers.append(_root(float((one - other).square().sum()), float(one.square().sum())))
            progress(len(layers) / count)
    return Comparison(layers, (_perplexity(one, tokens_BT), _perplexity(other, tokens_BT)))


def _states(folder: Path, tokens_BT: Tensor) -> Iterator[Tensor]:
    """Hidden states after each layer, then logits."""
    config = Checkpoint(folder).config
    positions_BT = torch.arange(tokens_BT.shape[1]).expand_as(tokens_BT)
    last = config.num_hidden_layers - 1
    x_BTD = tokens_BT
    for layer in range(config.num_hidden_layers):
        with torch.device("meta"):
            model = ArcticModel(config, range(layer, layer + 1), embed=layer == 0, lm_head=layer == last)
        load_weights(model, folder)
        if layer == 0:
            x_BTD = model.embed(tokens_BT)
        x_BTD, _ = model.run_layers(x_BTD, positions_BT)
        yield x_BTD
    yield model.logits(x_BTD)


def _perplexity(logits_BTV: Tensor, tokens_BT: Tensor) -> float:
    loss = functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), tokens_BT[:, 1:].flatten())
    return float(loss.double().exp())  # a loss may be so great that math.exp raises
