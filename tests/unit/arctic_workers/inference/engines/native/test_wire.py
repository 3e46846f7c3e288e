"""Hidden states as bytes between ranks."""

import pytest
import torch

from arctic_api.engine_options import PipelineFormat
from arctic_workers.inference.engines.native.wire import decode_states, encode_states

ROWS, HIDDEN = 5, 37


@pytest.fixture
def x_TD() -> torch.Tensor:  # noqa: N802 - shapes are named
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, HIDDEN, generator=generator) * torch.tensor([1e-3, 1.0, 1e4, 0.0, 7.0])[:, None]


def test_fp32_keeps_all_bits(x_TD: torch.Tensor) -> None:
    assert decode_states(encode_states(x_TD, "fp32"), ROWS, HIDDEN, "fp32").equal(x_TD)


@pytest.mark.parametrize(("wire", "size", "error"), [("bf16", 2 * HIDDEN, 2**-8), ("fp8", HIDDEN + 4, 2**-4)])
def test_narrow_formats_are_smaller_and_near(x_TD: torch.Tensor, wire: PipelineFormat, size: int, error: float) -> None:
    raw = encode_states(x_TD, wire)
    assert len(raw) == ROWS * size
    near_TD = decode_states(raw, ROWS, HIDDEN, wire)
    assert near_TD.dtype == torch.float32
    smallest_T = x_TD.abs().amax(-1, keepdim=True) * 2**-17
    assert torch.all((near_TD - x_TD).abs() <= x_TD.abs() * error + smallest_T)


@pytest.mark.parametrize("wire", ["fp32", "bf16", "fp8"])
def test_a_row_does_not_depend_on_its_neighbours(x_TD: torch.Tensor, wire: PipelineFormat) -> None:
    together_TD = decode_states(encode_states(x_TD, wire), ROWS, HIDDEN, wire)
    for row in range(ROWS):
        alone_TD = decode_states(encode_states(x_TD[row : row + 1], wire), 1, HIDDEN, wire)
        assert alone_TD.equal(together_TD[row : row + 1])


@pytest.mark.parametrize("wire", ["fp32", "bf16", "fp8"])
def test_bytes_of_another_number_of_rows_are_refused(x_TD: torch.Tensor, wire: PipelineFormat) -> None:
    with pytest.raises(RuntimeError, match=r"invalid for input of size|must be divisible by"):
        decode_states(encode_states(x_TD, wire), ROWS - 1, HIDDEN, wire)
