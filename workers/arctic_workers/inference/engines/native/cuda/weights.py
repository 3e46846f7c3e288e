"""A slice's weights as products take them: the loaded numbers themselves, nothing widened and nothing kept twice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from arctic_model.fp8 import Block, scale_name
from arctic_model.model import ArcticModel, DecoderLayer, DenseMLP
from arctic_model.moe import MoE
from arctic_workers.inference.engines.native.cuda.products import Matrices


class MLP(NamedTuple):
    """A gated MLP, or as many as the matrices are."""

    w1: Matrices
    w2: Matrices
    w3: Matrices


@dataclass(frozen=True)
class Experts:
    """The experts of a layer and what chooses among them."""

    norm_D: Tensor
    """Of the layer's input."""
    gate: Matrices
    mlps: MLP


@dataclass(frozen=True)
class Layer:
    """A layer: attention, a dense MLP, and beside both the experts, where it has some."""

    attention_norm_D: Tensor
    qkv: tuple[Matrices, ...]
    """Side by side: one, but where a checkpoint has some of them in another format."""
    o: Matrices
    mlp_norm_D: Tensor
    mlp: MLP
    experts: Experts | None


@dataclass(frozen=True)
class Head:
    """What makes logits of hidden states."""

    norm_D: Tensor
    matrix: Matrices


def layers_of(model: ArcticModel) -> dict[int, Layer]:
    """Take the layers of a model that is on its device over, by global index: it can't compute with them any more."""
    taken = {}
    for index, layer in model.layers.items():
        taken[index] = _layer(layer)
        torch.cuda.empty_cache()  # what was put side by side leaves room that no later tensor fills
    return taken


def head_of(model: ArcticModel) -> Head | None:
    """Return what makes logits, where the slice ends with it."""
    norm, lm_head = model.model.norm, model.lm_head
    return None if norm is None or lm_head is None else Head(norm.weight.detach().float(), _matrix(lm_head))


def _layer(layer: DecoderLayer) -> Layer:
    attention, experts = layer.self_attn, None
    if layer.has_experts:
        moe = cast("MoE", layer.block_sparse_moe)
        experts = Experts(_norm(layer.post_attention_layernorm), _matrix(moe.router.gate), _stacks(moe.experts))
        norm, mlp = layer.residual_layernorm, layer.residual_mlp
    else:
        norm, mlp = layer.post_attention_layernorm, cast("DenseMLP", layer.block_sparse_moe).mlp
    return Layer(
        _norm(layer.input_layernorm),
        tuple(_side_by_side([attention.q_proj, attention.k_proj, attention.v_proj])),
        _matrix(attention.o_proj),
        _norm(norm),
        MLP(*(_matrix(getattr(mlp, name)) for name in ("w1", "w2", "w3"))),
        experts,
    )


def _norm(module: nn.Module) -> Tensor:
    return module.get_parameter("weight").detach().float()


def _stacks(module: nn.Module) -> MLP:
    """Return the stacks of all experts."""
    block = cast("Block | None", getattr(module, "block", None))
    return MLP(
        *(
            Matrices(module.get_parameter(name).detach(), getattr(module, scale_name(name), None), block)
            for name in ("w1", "w2", "w3")
        )
    )


def _matrix(module: nn.Module) -> Matrices:
    """Return one matrix, a stack of one."""
    scale = cast("Tensor | None", getattr(module, scale_name("weight"), None))
    block = cast("Block | None", getattr(module, "block", None))
    return Matrices(module.get_parameter("weight").detach()[None], None if scale is None else scale[None], block)


def _side_by_side(modules: Sequence[nn.Module]) -> Iterator[Matrices]:
    """Yield the matrices of maps of the same x: one, and their own memory goes back, where all are of one format."""
    matrices = [_matrix(module) for module in modules]
    if len({(matrix.values.dtype, matrix.block) for matrix in matrices}) > 1:
        yield from matrices
        return
    values = torch.cat([bytes_of(matrix.values) for matrix in matrices], dim=1).view(matrices[0].values.dtype)
    yield Matrices(values, *_scales(matrices))
    for module in modules:
        module.register_parameter("weight", None)


def bytes_of(values: Tensor) -> Tensor:
    """View e4m3, which few operations know, as bytes."""
    return values.view(torch.uint8) if values.itemsize == 1 else values


def _scales(matrices: Sequence[Matrices]) -> tuple[Tensor | None, Block | None]:
    """Return the scales of outputs side by side, and the blocks: lower ones where one would be of two matrices."""
    scales = [matrix.scale for matrix in matrices if matrix.scale is not None]
    block = matrices[0].block
    if block is None or not scales:
        return torch.cat(scales, dim=1) if scales else None, None
    height = gcd(block[0], *(matrix.values.shape[1] for matrix in matrices))
    spread = [
        scale.repeat_interleave(block[0] // height, 1)[:, : matrix.values.shape[1] // height]
        for scale, matrix in zip(scales, matrices, strict=True)
    ]
    return torch.cat(spread, dim=1), (height, block[1])
