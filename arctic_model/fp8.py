"""FP8 weights: e4m3 values with a scale for each output channel, and modules that keep them so.

Why a scale an output channel and not one a 128 x 128 block: the scale leaves the dot product (one multiplication an
output), it fits any shape, and a matrix cut by tensor parallelism has the same values and scales as the whole one, so
that every degree computes with the same weights. e4m3 keeps its relative error over 2^14: smaller blocks gain little.
Modules can have a scale a block all the same, for checkpoints that were quantised so: `block` is its rows and columns.
Shapes are named by the legend of `arctic_model.layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from arctic_model.moe import Experts, Router, expert_by_expert

DTYPE = torch.float8_e4m3fn
MAX = torch.finfo(DTYPE).max
"""The greatest finite e4m3 value, 448."""
Block = tuple[int, int]
"""Outputs and inputs that share a scale."""


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round [..., out, in] to e4m3 values and fp32 scales [..., out] with `weight ~ values * scale`.

    The greatest magnitude of each channel becomes 448. The error is at most 1/16 of a value, or `scale * 2^-10` where
    that is more (subnormals). A channel of zeros has scale 1.
    """
    wide = weight.float()
    scale = wide.abs().amax(-1) / MAX
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (wide / scale[..., None]).clamp(-MAX, MAX).to(DTYPE), scale


def quantize_blocks(weight: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    """Round [..., out, in] to e4m3 values and fp32 scales of blocks, [..., ceil(out / rows), ceil(in / columns)].

    As `quantize`, with a block's greatest magnitude in place of a channel's.
    """
    *stack, rows, columns = weight.shape
    height, width = block
    padded = functional.pad(weight.float(), (0, -columns % width, 0, -rows % height))
    blocks = padded.reshape(*stack, padded.shape[-2] // height, height, -1, width)
    scale = blocks.abs().amax((-3, -1)) / MAX
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    values = (blocks / scale[..., None, :, None]).clamp(-MAX, MAX).view(padded.shape)
    return values[..., :rows, :columns].to(DTYPE).contiguous(), scale


def dequantize(values: Tensor, scale: Tensor, block: Block | None = None) -> Tensor:
    """Return `values * scale` in fp32; the scales are those of output channels, or of blocks."""
    return values.float() * (scale[..., None] if block is None else spread(scale, block, values.shape))


def spread(scale: Tensor, block: Block, shape: Sequence[int]) -> Tensor:
    """Return the scales of blocks so that they multiply weights of a shape [..., out, in], element by element."""
    rows = scale.repeat_interleave(block[0], -2)[..., : shape[-2], :]
    return rows.repeat_interleave(block[1], -1)[..., : shape[-1]]


def scale_shape(shape: Sequence[int], block: Block | None) -> tuple[int, ...]:
    """Shape of the scales of weights [..., out, in]."""
    *stack, rows, columns = shape
    return (*stack, rows) if block is None else (*stack, -(-rows // block[0]), -(-columns // block[1]))


def scale_name(parameter: str) -> str:
    """Name of the buffer that holds a parameter's scales."""
    return f"{parameter}_scale"


class Fp8Linear(nn.Module):
    """A linear layer without bias: `weight` e4m3 [out, in], `weight_scale` fp32 [out], or one a block."""

    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int, block: Block | None = None) -> None:
        super().__init__()
        self.block = block
        shape = (out_features, in_features)
        self.weight = nn.Parameter(torch.empty(shape, dtype=DTYPE), requires_grad=False)
        self.register_buffer("weight_scale", torch.empty(scale_shape(shape, block), dtype=torch.float32))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Multiply in the dtype of the input."""
        return scaled_linear(x_BTD, self.weight, self.weight_scale, self.block)


def scaled_linear(x: Tensor, values: Tensor, scale: Tensor, block: Block | None = None) -> Tensor:
    """`x @ (values * scale).T` in the dtype of `x`.

    Scales of channels are applied to the outputs, in fp32 (e4m3 is exact in bf16, fp16 and fp32), those of blocks to
    the weights.
    """
    if block is not None:
        return functional.linear(x, dequantize(values, scale, block).to(x.dtype))
    return (functional.linear(x, values.to(x.dtype)) * scale).to(x.dtype)


class Fp8Experts(nn.Module):
    """`Experts` with e4m3 `w1`, `w2`, `w3` and fp32 `w1_scale` [E, F], `w2_scale` [E, D], `w3_scale` [E, F].

    Or a scale a block of each expert.
    """

    w1: nn.Parameter
    w2: nn.Parameter
    w3: nn.Parameter
    w1_scale: Tensor
    w2_scale: Tensor
    w3_scale: Tensor

    def __init__(self, experts: int, hidden: int, inner: int, block: Block | None = None) -> None:
        super().__init__()
        self.block = block
        for name, rows, columns in (("w1", inner, hidden), ("w2", hidden, inner), ("w3", inner, hidden)):
            values = torch.empty(experts, rows, columns, dtype=DTYPE)
            self.register_parameter(name, nn.Parameter(values, requires_grad=False))
            scales = torch.empty(scale_shape(values.shape, block), dtype=torch.float32)
            self.register_buffer(scale_name(name), scales)

    def forward(self, x_RD: Tensor, counts_E: Tensor) -> Tensor:
        """See `Experts.forward`."""

        def run(expert: int, x_rD: Tensor) -> Tensor:
            inner = scaled_linear(x_rD, self.w1[expert], self.w1_scale[expert], self.block)
            gate = scaled_linear(x_rD, self.w3[expert], self.w3_scale[expert], self.block)
            return scaled_linear(functional.silu(inner) * gate, self.w2[expert], self.w2_scale[expert], self.block)

        return expert_by_expert(x_RD, counts_E, run)


def quantize_model(
    model: nn.Module, wanted: Callable[[str], bool] = lambda _: True, block: Block | None = None
) -> None:
    """Replace, in place, every linear layer and every `Experts` by its FP8 form; gates, norms and embeddings stay.

    Those stay, too, of whose parameters `wanted` says False by name. Scales are those of `block`s, or of channels.

    On the meta device only the form changes, and `load_weights` quantises as it reads; weights that are there are
    quantised now.
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, Router):
            continue
        for name, child in module.named_children():
            names = [f"{path}.{name}.{leaf}".lstrip(".") for leaf, _ in child.named_parameters(recurse=False)]
            if names and all(map(wanted, names)) and (replacement := _fp8_form(child, block)) is not None:
                setattr(module, name, replacement)


def _fp8_form(module: nn.Module, block: Block | None) -> nn.Module | None:
    replacement: nn.Module
    if isinstance(module, nn.Linear) and module.bias is None:
        with torch.device(module.weight.device):
            replacement = Fp8Linear(module.in_features, module.out_features, block)
    elif isinstance(module, Experts):
        experts, inner, hidden = module.w1.shape
        with torch.device(module.w1.device):
            replacement = Fp8Experts(experts, hidden, inner, block)
    else:
        return None
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.is_meta:  # no values yet, and arithmetic there would import torch's compiler for seconds
                continue
            values, scale = quantize(weight) if block is None else quantize_blocks(weight, block)
            replacement.get_parameter(name).copy_(values)
            replacement.get_buffer(scale_name(name)).copy_(scale)
    return replacement
