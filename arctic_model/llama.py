"""A Llama made into an Arctic that computes the same, to the bit, and that training can then grow.

A layer without experts is Llama's own. Hybrid layers are put in between whose three matrices that write to the residual
stream (attention's o_proj, w2 of the residual MLP and of the experts) are zero: they add nothing until training moves
those, which it does at its first step, as what is before them is not zero (Komatsuzaki et al. 2022, sparse upcycling).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from arctic_model import fp8
from arctic_model.config import CONFIG_FILE, ArcticConfig, read_json
from arctic_model.initialization import initial_matrix, is_added
from arctic_model.names import tensor_shapes
from arctic_model.weights import (
    DEFAULT_SHARD_BYTES,
    Checkpoint,
    TensorEntry,
    atomic_folder,
    write_config,
    write_weights,
)

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
_EMBEDDING = "model.embed_tokens.weight"
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
    """A Llama in the Hugging Face layout. Raises ValueError, and CheckpointError where it is not whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)
        raw = read_json(self._folder / CONFIG_FILE)
        names = raw.get("architectures") or ["LlamaForCausalLM"]
        if raw.get("model_type") != "llama" or names != ["LlamaForCausalLM"]:
            raise ValueError(
                f"{self._folder / CONFIG_FILE}: it is a {', '.join(map(str, names))} of model_type "
                f"{raw.get('model_type')!r}; a LlamaForCausalLM alone can become an Arctic"
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


def grown_config(llama: ArcticConfig, *, experts: int, every: int) -> ArcticConfig:
    """Return the configuration with a hybrid layer at every `every`-th place, and the dense layers around them.

    Dense layers that are left over come last. Raises ValueError where there would be no hybrid layer.
    """
    dense = llama.num_hidden_layers
    if not 2 <= every <= dense + 1:
        raise ValueError(
            f"a hybrid layer at every {every}. place, and the model has {dense} layers: write a number from 2 to "
            f"{dense + 1}"
        )
    return llama.replace(
        num_hidden_layers=dense + dense // (every - 1),
        moe_layer_frequency=every,
        num_local_experts=experts,
        num_experts_per_tok=min(2, experts),
    )


def llama_layer_name(config: ArcticConfig, hf_name: str) -> str | None:
    """The tensor of the Llama that one of the grown model is; None for one of a hybrid layer. Pure."""
    match = _LAYER.fullmatch(hf_name)
    if match is None:
        return hf_name
    layer = int(match[1])
    if config.has_experts(layer):
        return None
    return f"model.layers.{layer - layer // config.moe_layer_frequency}.{match[2]}"


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
    common = source.dtype(_EMBEDDING)
    config = grown_config(source.config, experts=experts, every=every)
    config = config.replace(torch_dtype=str(common).removeprefix("torch."))
    shapes = tensor_shapes(config)
    origins = {name: llama_layer_name(config, name) for name in shapes}
    dtypes = {name: common if origin is None else source.dtype(origin) for name, origin in origins.items()}
    written = 0

    def fetch(name: str) -> Tensor:
        nonlocal written
        written += 1
        progress(written / len(shapes))
        origin, shape = origins[name], shapes[name]
        tensor = _of_hybrid_layer(config, name, shape) if origin is None else source.tensor(origin, shape)
        return tensor.to(dtypes[name])

    with atomic_folder(target) as temporary:
        write_config(temporary, config)
        source.write_tokenizer(temporary)
        entries = [TensorEntry(name, shape, dtypes[name]) for name, shape in shapes.items()]
        write_weights(temporary, entries, fetch, max_shard_bytes=max_shard_bytes)
    return config


def _of_hybrid_layer(config: ArcticConfig, name: str, shape: tuple[int, ...]) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape)
    return torch.zeros(shape) if is_added(name) else initial_matrix(config, name, shape, _SEED)
