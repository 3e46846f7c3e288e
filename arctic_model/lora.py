"""Low-rank adapters (Hu et al. 2021): `W x` becomes `W x + (alpha / rank) B A x`, with W as it was.

They are on all that every token passes: the projections of attention, the residual MLP, and the MLP of a layer without
experts. Experts, gates, norms, embedding and output matrix have none. Their tensors go by the name of the matrix that
they stand on: `NAME.lora_A.weight` is [rank, inputs], `NAME.lora_B.weight` [outputs, rank].
"""

from __future__ import annotations

import math
import re
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from arctic_model.config import ArcticConfig
from arctic_model.initialization import normal_matrix
from arctic_model.model import ArcticModel
from arctic_model.names import tensor_shapes

TARGETS = r"(self_attn\.[qkvo]_proj|(residual_mlp|block_sparse_moe\.mlp)\.w[123])"
"""What an adapter can stand on, behind the name of its layer."""
A, B = "lora_A", "lora_B"
_TARGET = re.compile(rf"model\.layers\.\d+\.{TARGETS}\.weight")


class _Map(nn.Linear):
    """A linear map that is given its weight: filling one draws from the random state that checkpoints keep."""

    def __init__(self, weight: Tensor) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight)
        self.register_parameter("bias", None)


class LoraLinear(_Map):
    """A linear map whose weight is frozen, with a low-rank addition that is trained."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        """Take the weight of `base` over; the addition is not filled. `scale` is alpha / rank."""
        super().__init__(base.weight)
        self.weight = base.weight  # the parameter itself, with its marks
        self.scale = scale
        self.lora_A = _Map(base.weight.new_empty(rank, base.in_features))
        self.lora_B = _Map(base.weight.new_empty(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Return `W x + scale B A x`."""
        added: Tensor = self.lora_B(self.lora_A(x))
        return functional.linear(x, self.weight) + self.scale * added


def targets(config: ArcticConfig) -> dict[str, tuple[int, int]]:
    """Return the matrices that an adapter stands on, without `.weight`, with their [outputs, inputs]."""
    shapes = tensor_shapes(config)
    return {
        name.removesuffix(".weight"): cast("tuple[int, int]", shape)
        for name, shape in shapes.items()
        if _TARGET.fullmatch(name)
    }


def adapter_shapes(config: ArcticConfig, rank: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of an adapter."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (outputs, inputs) in targets(config).items():
        shapes |= {f"{name}.{A}.weight": (rank, inputs), f"{name}.{B}.weight": (outputs, rank)}
    return shapes


def add_adapter(model: ArcticModel, rank: int, alpha: float, seed: int) -> None:
    """Freeze a whole model that is loaded, and put a fresh adapter on it, with which it computes what it did.

    A is normal, with the spread that peft gives it, B zero; both follow from the seed and their names alone.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in targets(model.config):
        path, _, leaf = name.rpartition(".")
        linear = LoraLinear(cast("nn.Linear", model.get_submodule(name)), rank, alpha / rank)
        spread = 1 / math.sqrt(3 * linear.in_features)
        with torch.no_grad():
            linear.lora_A.weight.copy_(spread * normal_matrix(f"{name}.{A}.weight", linear.lora_A.weight.shape, seed))
            linear.lora_B.weight.zero_()
        setattr(model.get_submodule(path), leaf, linear)


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return in fp32 the one matrix that computes what a frozen one and its addition do."""
    return weight.float() + scale * (b.float() @ a.float())
