"""A Llama made into an Arctic that computes the same, to the bit, and that training can then grow.

A layer without experts is Llama's own. Hybrid layers are put in between whose three matrices that write to the residual
stream (attention's o_proj, w2 of the residual MLP and of the experts) are zero: they add nothing until training moves
those, which it does at its first step, as what is before them is not zero (Komatsuzaki et al. 2022, sparse upcycling).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from arctic_model import fp8
from arctic_model.config import CONFIG_FILE, ArcticConfig, read_json
from arctic_model.initialization import initial_matrix, is_added
from arctic_model.names import tensor_shapes
from arctic_model.upcycle import dense_name, grown_config
from arctic_model.weights import (
    DEFAULT_SHARD_BYTES,
    Checkpoint,
    Piece,
    TensorEntry,
    atomic_folder,
    write_config,
    write_weights,
)

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
EMBEDDING = "model.embed_tokens.weight"
_SEED = 0


class Llama(Protocol):
    """A source: its configuration as that of an Arctic with dense layers alone, its tensors under an Arctic's names."""

    config: ArcticConfig

    def dtype(self, hf_name: str) -> torch.dtype:
        """The narrowest type that holds a tensor exactly."""
        ...

    def tensor(self, hf_name: str, shape: tuple[int, ...]) -> Tensor:
        """Read one tensor."""
        ...

    def write_tokenizer(self, folder: Path) -> None:
        """Write tokenizer and chat template into a folder that exists."""
        ...


class LlamaFolder:
    """A Llama in the Hugging Face layout, or an Arctic without experts, which is the same under other names.

    Raises ValueError, and CheckpointError where it is not whole.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)
        raw = read_json(self._folder / CONFIG_FILE)
        kind, names = raw.get("model_type"), raw.get("architectures") or ["LlamaForCausalLM"]
        if kind != "arctic" and (kind != "llama" or names != ["LlamaForCausalLM"]):
            raise ValueError(
                f"{self._folder / CONFIG_FILE}: it is a {', '.join(map(str, names))} of model_type {kind!r}; a "
                "LlamaForCausalLM alone can become an Arctic"
            )
        self._checkpoint = Checkpoint(self._folder)
        self.config = self._checkpoint.config
        self._checkpoint.check_names(list(tensor_shapes(self.config)), self.config)

    def dtype(self, hf_name: str) -> torch.dtype:
        """See `Llama`."""
        stored = self._checkpoint.dtype(hf_name)
        return torch.float32 if stored == fp8.DTYPE else stored

    def tensor(self, hf_name: str, shape: tuple[int, ...]) -> Tensor:
        """See `Llama`."""
        return self._checkpoint.tensor(hf_name, shape)

    def write_tokenizer(self, folder: Path) -> None:
        """See `Llama`."""
        for name in _TOKENIZER_FILES:
            if (self._folder / name).is_file():
                (folder / name).write_bytes((self._folder / name).read_bytes())


class Grown:
    """A dense model as the Arctic that it becomes, tensor by tensor: its layers, and hybrid ones that add zeros.

    What is new follows from `seed`. A `Weights`: it can be written, or loaded as it is read.
    """

    def __init__(self, source: Llama, config: ArcticConfig, seed: int = _SEED) -> None:
        """`config` is the source's, or what `grown_config` made of it."""
        self.config = config
        self._source = source
        self._seed = seed

    def check_names(self, wanted: Sequence[str], model: ArcticConfig) -> None:
        """See `Weights`: a source is whole, and every other tensor is made."""

    def dtype(self, hf_name: str) -> torch.dtype:
        """The narrowest type that holds a tensor exactly; of what is new that of the embedding."""
        return self._source.dtype(dense_name(self.config, hf_name) or EMBEDDING)

    def tensor(self, hf_name: str, shape: tuple[int, ...]) -> Tensor:
        """Read or make one tensor."""
        name = dense_name(self.config, hf_name)
        if name is not None:
            return self._source.tensor(name, shape).to(self.dtype(hf_name))
        return self._new(hf_name, shape).to(self.dtype(hf_name))

    def pieces(self, hf_name: str, shape: tuple[int, ...], rows: range | None = None) -> Iterator[Piece]:
        """See `Weights`."""
        wanted = slice(0, shape[0]) if rows is None else slice(rows.start, rows.stop)
        yield Piece(wanted, self.tensor(hf_name, shape)[wanted], None, None)

    def _new(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape)
        return torch.zeros(shape) if is_added(name) else initial_matrix(self.config, name, shape, self._seed)


def import_llama(
    source: Llama,
    target: Path,
    *,
    experts: int,
    every: int,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Callable[[float], None] = lambda _: None,
) -> ArcticConfig:
    """Write `target`, which appears whole or not at all; returns its configuration.

    Each tensor has the type that holds the source's exactly. `progress` is called with the share that is written.
    Raises FileExistsError, and what the source raises.
    """
    config = grown_config(source.config, experts=experts, every=every)
    config = config.replace(torch_dtype=str(source.dtype(EMBEDDING)).removeprefix("torch."))
    grown = Grown(source, config)
    shapes = tensor_shapes(config)
    written = 0

    def fetch(name: str) -> Tensor:
        nonlocal written
        written += 1
        progress(written / len(shapes))
        return grown.tensor(name, shapes[name])

    with atomic_folder(target) as temporary:
        write_config(temporary, config)
        source.write_tokenizer(temporary)
        entries = [TensorEntry(name, shape, grown.dtype(name)) for name, shape in shapes.items()]
        write_weights(temporary, entries, fetch, max_shard_bytes=max_shard_bytes)
    return config


def is_llama(path: Path) -> bool:
    """Return whether a folder or file of weights is a Llama rather than an Arctic; ValueError where neither."""
    return path.is_file() or read_json(path / CONFIG_FILE).get("model_type") == "llama"


def open_llama(path: Path) -> Llama:
    """Open a folder or a GGUF file. Raises ValueError where it is neither, or not of a model without experts."""
    from arctic_model.gguf.reader import GgufLlama

    if path.is_dir():
        return LlamaFolder(path)
    if not path.is_file():
        raise ValueError(f"{path} is not there: name a folder or a GGUF file")
    return GgufLlama(path)
