"""Norms under Triton's interpreter, against the model's own."""

import pytest
import torch

from arctic_model.layers import RMSNorm
from arctic_workers.inference.engines.native.cuda.norms import rms_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "size"), [(1, 64), (5, 100), (3, 7)])
def test_rows_are_normed_as_the_model_does(rows: int, size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(size, 1e-5)
    norm.weight.data = torch.randn(size).to(dtype)
    x_SD = torch.randn(rows, size) * torch.tensor([1e-3, 1.0, 1e4, 3.0, 0.0])[:rows, None]
    found = rms_norm(x_SD, norm.weight.detach(), norm.eps)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, norm(x_SD).detach(), rtol=2e-6, atol=0.0)


def test_a_row_has_the_same_bits_alone_and_among_others() -> None:
    x_SD, weight_D = torch.randn(9, 130), torch.randn(130)
    many = rms_norm(x_SD, weight_D, 1e-6)
    assert torch.equal(rms_norm(x_SD[4:5], weight_D, 1e-6), many[4:5])


def test_rows_may_be_parts_of_longer_ones() -> None:
    x_SD, weight_D = torch.randn(4, 80), torch.randn(32)
    assert torch.equal(rms_norm(x_SD[:, 16:48], weight_D, 1e-6), rms_norm(x_SD[:, 16:48].clone(), weight_D, 1e-6))
