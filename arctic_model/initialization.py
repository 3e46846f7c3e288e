"""Initial weights from a seed: a function of the seed and the tensor's name, so that any sharding gives the same."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from arctic_model.config import ArcticConfig
from arctic_model.model import ArcticModel
from arctic_model.names import hf_names
from arctic_model.weights import held_experts, materialize

# What is added to the residual stream: their spread shrinks with depth, so that the stream's does not grow with it.
_ADDED = ("o_proj.weight", "w2.weight")


def init_weights(model: ArcticModel, seed: int, *, device: torch.device | str = "cpu", first_expert: int = 0) -> None:
    """Give every parameter its initial value, those on the meta device their memory on `device` too.

    Norms are 1; matrices are normal with `initializer_range`, and that over `sqrt(2 * layers)` where they write to the
    residual stream (Radford et al. 2019, section 2.3). `first_expert` is the first of the experts that this rank holds.
    """
    with torch.no_grad():
        for name, parameter in list(model.named_parameters()):
            if "norm" in name.rsplit(".", 2)[-2]:
                materialize(model, name, device).fill_(1.0)
                continue
            parts = hf_names(name, held_experts(parameter, first_expert))
            target = materialize(model, name, device)
            for part, into in zip(parts, target.unbind() if target.dim() == 3 else (target,), strict=True):
                into.copy_(initial_matrix(model.config, part, tuple(into.shape), seed))


def initial_matrix(config: ArcticConfig, hf_name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return the initial value of one matrix, by its name in a checkpoint; see `init_weights`."""
    shrink = math.sqrt(2 * config.num_hidden_layers) if is_added(hf_name) else 1.0
    return normal_matrix(hf_name, shape, seed) * (config.initializer_range / shrink)


def is_added(hf_name: str) -> bool:
    """Whether a matrix writes to the residual stream."""
    return hf_name.endswith(_ADDED)


def normal_matrix(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return standard normal numbers in fp32 that follow from a name and a seed."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
