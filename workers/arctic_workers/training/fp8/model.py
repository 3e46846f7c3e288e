"""Which matrices of a model are multiplied in FP8, and where that can't be."""

import torch
from torch import nn

from arctic_model.config import ArcticConfig
from arctic_model.model import ArcticModel, DecoderLayer, DenseMLP
from arctic_workers.training.compiler import builds_kernels
from arctic_workers.training.experts import ParallelExperts
from arctic_workers.training.extent import check_fp8_sizes
from arctic_workers.training.fp8.experts import RoundedProduct
from arctic_workers.training.fp8.linear import RoundedLinear, last_input

LEAST_CAPABILITY = (8, 9)
"""Compute capability of GPUs that multiply FP8: from NVIDIA's Ada on."""


def multiply_in_fp8(model: ArcticModel) -> None:
    """Have the experts, attention's projections and the dense MLPs of a model multiply in FP8; no parameter changes.

    Routers stay as they are, which are small and whose choices would turn over, as do embedding, norms, the output
    matrix, whose errors are the loss's own, and attention itself: the parts that DeepSeek-V3 kept (DeepSeek-AI 2024,
    arXiv 2412.19437, section 3.3.1).
    """
    last = last_input()
    product = RoundedProduct()
    for layer in model.layers.values():
        for part in (layer.self_attn, _dense_mlp(layer)):
            for name, child in part.named_children():
                if isinstance(child, nn.Linear):
                    setattr(part, name, RoundedLinear(child, last))
        if isinstance(layer.block_sparse_moe, ParallelExperts):
            layer.block_sparse_moe.company.product = product


def _dense_mlp(layer: DecoderLayer) -> nn.Module:
    return layer.block_sparse_moe.mlp if isinstance(layer.block_sparse_moe, DenseMLP) else layer.residual_mlp


def check_fp8(config: ArcticConfig, device: torch.device) -> None:
    """Raise ValueError with a sentence where a model can't be trained in FP8 on a device. CPUs only round to it."""
    check_fp8_sizes(config)
    if device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        own, least = (".".join(map(str, version)) for version in (capability, LEAST_CAPABILITY))
        raise ValueError(
            f"precision is fp8, which a {torch.cuda.get_device_name(device)} doesn't multiply: its compute capability "
            f"is {own}, and {least} is the least that does; write bf16, or name other nodes"
        )
    if not builds_kernels():
        raise ValueError(
            "precision is fp8, and what rounds to it on GPUs takes a C compiler to be started (gcc, clang, or CC), of "
            "which the workers' image has none; write bf16, or another image"
        )
