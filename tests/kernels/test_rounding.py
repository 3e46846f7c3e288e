"""Products of many rows that are rounded to FP8, under Triton's interpreter."""

import pytest
import torch
from models import random_model
from torch.nn import functional

from arctic_model import fp8
from arctic_model.config import ArcticConfig
from arctic_workers.inference.engines.native.cache import PagedCache
from arctic_workers.inference.engines.native.cuda import graphs, rank, rounding
from arctic_workers.inference.engines.native.cuda.products import Matrices
from arctic_workers.inference.engines.native.cuda.rank import CudaRank
from arctic_workers.inference.engines.native.cuda.routing import route
from arctic_workers.inference.engines.native.cuda.weights import MLP
from arctic_workers.inference.engines.native.step import Part


def matrices(*shape: int, seed: int = 0) -> Matrices:
    values, scale = fp8.quantize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    return Matrices(values, scale)


def rounded(x: torch.Tensor) -> torch.Tensor:
    return fp8.dequantize(*fp8.quantize(x))


@pytest.mark.parametrize("size", [16, 3000])
def test_rows_are_rounded_as_weights_are(size: int) -> None:
    x_SD = torch.randn(5, size) * torch.tensor([1e-4, 1.0, 1e4, 1.0, 0.0])[:, None]
    x_SD[3, 7] = 1e5
    values_SD, scales_S = rounding.round_rows(x_SD)
    expected_SD, expected_S = fp8.quantize(x_SD)
    assert torch.equal(scales_S, expected_S)
    assert torch.equal(values_SD.float(), expected_SD.float())


def test_what_w2_takes_is_rounded_in_one_go() -> None:
    gate_SF, up_SF = torch.randn(2, 4, 48).bfloat16()
    made = rounding.round_gated(gate_SF, up_SF).widened()
    expected_SF = functional.silu(gate_SF.float()) * up_SF.float()
    assert torch.allclose(made, expected_SF, rtol=1 / 15, atol=expected_SF.abs().max().item() * 2**-9 / 448)


def test_products_are_those_of_what_was_rounded() -> None:
    x_SK, weights = torch.randn(6, 32), matrices(1, 48, 32)
    assert weights.scale is not None
    expected_SN = rounded(x_SK) @ fp8.dequantize(weights.values[0], weights.scale[0]).t()
    assert torch.allclose(rounding.product(x_SK, weights), expected_SN, rtol=2**-8, atol=1e-4)


def test_experts_are_multiplied_with_the_rows_that_chose_them() -> None:
    logits_SE, x_SD = torch.randn(40, 4), torch.randn(40, 32)
    logits_SE[:, 2] = -100.0  # which nobody chooses
    mlps = MLP(matrices(4, 16, 32, seed=1), matrices(4, 32, 16, seed=2), matrices(4, 16, 32, seed=3))
    routes = route(logits_SE, 2, 8)
    y_RD = rounding.experts_of(x_SD, mlps, routes)
    for token in range(40):
        for expert, place in zip(routes.experts_SK[token].tolist(), routes.places_SK[token].tolist(), strict=True):
            own = MLP(*(Matrices(w.values[expert, None], w.scale[expert, None]) for w in mlps if w.scale is not None))
            assert torch.allclose(y_RD[place], rounding.mlp_of(x_SD[token, None], own)[0], rtol=2**-6, atol=1e-3)


@pytest.mark.parametrize(
    ("weights", "taken"),
    [
        (matrices(1, 48, 32), True),
        (matrices(1, 40, 32), False),
        (Matrices(torch.zeros(1, 48, 32)), False),
        (Matrices(torch.zeros(1, 32, 32).to(fp8.DTYPE), torch.ones(1, 2, 2), (16, 16)), False),
    ],
)
def test_other_matrices_are_left_to_products_that_keep_all_bits(weights: Matrices, taken: bool) -> None:
    assert rounding.takes(matrices(1, 16, 16), weights) is taken


def test_only_steps_of_many_rows_are_rounded_and_only_where_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "FEWEST_BLOCKS", 2)
    monkeypatch.setattr(rank, "LEAST_ROWS", 8)
    config = ArcticConfig.preset("arctic-tiny").replace(
        vocab_size=40, hidden_size=32, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32,
        num_hidden_layers=2, moe_layer_frequency=2, num_local_experts=4,
    )  # fmt: skip

    def states(tokens: int, *, rounds: bool) -> torch.Tensor:
        model = random_model(config)
        fp8.quantize_model(model)
        cache = PagedCache(range(2), blocks=4, block_size=8, heads=1, head_dim=config.head_dim, dtype=torch.float32)
        return CudaRank(model, cache, rounds=rounds).run([Part(0, tuple(range(tokens)), (0, 1), None)], None)

    with torch.inference_mode():
        assert torch.equal(states(7, rounds=True), states(7, rounds=False))
        exact_TD, rounded_TD = states(9, rounds=False), states(9, rounds=True)
    assert not torch.equal(exact_TD, rounded_TD)
    assert (exact_TD - rounded_TD).norm() < 0.1 * exact_TD.norm()
