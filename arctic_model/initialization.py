"""Initial weights from a seed: a function of the seed and the tensor's name, so that any sharding gives the same."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

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
    config = model.config
    with torch.no_grad():
        for name, parameter in list(model.named_parameters()):
            if "norm" in name.rsplit(".", 2)[-2]:
                materialize(model, name, device).fill_(1.0)
                continue
            parts = hf_names(name, held_experts(parameter, first_expert))
            target = materialize(model, name, device)
            for part, into in zip(parts, target.unbind() if target.dim() == 3 else (target,), strict=True):
                shrink = math.sqrt(2 * config.num_hidden_layers) if part.endswith(_ADDED) else 1.0
                into.copy_(_normal(part, tuple(into.shape), seed) * (config.initializer_range / shrink))


def _normal(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
