"""The engine's kernels, as they are compiled for this card, against fp64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from arctic_model import fp8
from arctic_workers.inference.engines.native.cuda.norms import rms_norm
from arctic_workers.inference.engines.native.cuda.products import Matrices, dense_tiles, gated, product, tile_size
from arctic_workers.inference.engines.native.cuda.routing import route, weighted_sum

DTYPES = [fp8.DTYPE, torch.bfloat16, torch.float32]
SIZES = [(4864, 7168), (1024, 256), (72, 136)]
"""Outputs and inputs: an expert's of the 480B, and others; the last are no multiple of any tile."""
ROUNDED = 2.0**-18
"""Of the sum of what is added, without signs: what fp32 sums may lose."""


def matrices(count: int, outputs: int, inputs: int, dtype: torch.dtype, device: torch.device) -> Matrices:
    """In e4m3 every code but the two that are no number."""
    generator = torch.Generator(device).manual_seed(count + outputs)
    shape = (count, outputs, inputs)
    if dtype != fp8.DTYPE:
        return Matrices(torch.randn(shape, generator=generator, device=device).to(dtype))
    codes = torch.randint(0, 254, shape, generator=generator, device=device)
    values = (codes + (codes >= 127)).to(torch.uint8).view(fp8.DTYPE)
    return Matrices(values, torch.rand(count, outputs, generator=generator, device=device) + 0.5)


def wide(weights: Matrices) -> Tensor:
    values = weights.values.double()
    return values if weights.scale is None else values * weights.scale[..., None].double()


def assert_sums(y: Tensor, x: Tensor, w: Tensor) -> None:
    bound = ROUNDED * (x.double().abs() @ w.abs().t())
    assert ((y.double() - x.double() @ w.t()).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 16, 17, 64, 200])
def test_products_are_exact_but_for_the_order_of_sums(
    gpu: torch.device, dtype: torch.dtype, size: tuple[int, int], rows: int
) -> None:
    weights = matrices(1, *size, dtype, gpu)
    x_SK = torch.randn(rows, size[1], device=gpu) * 8
    y_SN = product(x_SK, weights, dense_tiles(rows, gpu))
    assert_sums(y_SN, x_SK, wide(weights)[0])
    assert torch.equal(product(x_SK, weights, dense_tiles(rows, gpu)), y_SN)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens", [1, 16, 150])
def test_experts_say_what_each_token_asks_of_them(
    gpu: torch.device, dtype: torch.dtype, size: tuple[int, int], tokens: int
) -> None:
    inner, hidden = size
    experts, chosen = 4, 2
    w1, w3 = (matrices(experts, inner, hidden, dtype, gpu) for _ in range(2))
    w2 = matrices(experts, hidden, inner, dtype, gpu)
    scale = (wide(w1).square().mean() * hidden).rsqrt()
    x_SD = torch.randn(tokens, hidden, device=gpu) * scale.float()
    logits_SE = torch.randn(tokens, experts, device=gpu)
    routes = route(logits_SE, chosen, tile_size(tokens * chosen // experts))
    inner_RF = gated(x_SD, w1, w3, routes.tiles)
    y_SD = weighted_sum(product(inner_RF, w2, routes.tiles.of_slots()), routes)

    weights_SK, experts_SK = logits_SE.double().softmax(-1).topk(chosen)
    weights_SK /= weights_SK.sum(-1, keepdim=True)
    expected_SD = torch.zeros_like(y_SD, dtype=torch.float64)
    for expert in range(experts):
        rows, places = (experts_SK == expert).nonzero(as_tuple=True)
        x = x_SD[rows].double()
        said = functional.silu(x @ wide(w1)[expert].t()) * (x @ wide(w3)[expert].t()) @ wide(w2)[expert].t()
        expected_SD.index_add_(0, rows, said * weights_SK[rows, places, None])
    error = (y_SD - expected_SD).norm() / expected_SD.norm()
    assert error < 1e-5


@pytest.mark.parametrize("size", [7168, 200])
def test_norms_are_those_of_the_model(gpu: torch.device, size: int) -> None:
    x_SD = torch.randn(33, size, device=gpu) * 3
    weight_D = torch.rand(size, device=gpu)
    expected_SD = x_SD.double() * (x_SD.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight_D
    assert (rms_norm(x_SD, weight_D, 1e-5) - expected_SD).abs().max() < 1e-5
