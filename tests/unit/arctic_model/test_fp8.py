from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arctic_model.fp8 import DTYPE, MAX, Fp8Experts, Fp8Linear, dequantize, quantize, quantize_blocks, quantize_model
from arctic_model.model import ArcticModel
from arctic_model.weights import load_weights, save_model


@given(
    st.integers(0, 1000),
    st.floats(1e-20, 1e20),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_error_is_bounded_element_by_element(seed, spread, dtype):
    weight = (torch.randn(7, 33, generator=torch.Generator().manual_seed(seed)).exp() * spread).to(dtype)
    values, scale = quantize(weight)
    wide = weight.double()
    error = (dequantize(values, scale).double() - wide).abs()
    assert (error <= torch.maximum(wide.abs() / 16, scale[:, None].double() / 2**10) * (1 + 1e-5)).all()
    assert (values.float().abs().amax(1) == MAX).all()


def test_zeros_stay_zeros_and_extremes_stay_finite():
    weight = torch.tensor([[0.0, 0.0], [1e-30, -1e-30], [3e38, -1.0]])
    values, scale = quantize(weight)
    assert torch.isfinite(dequantize(values, scale)).all()
    assert (dequantize(values, scale)[0] == 0).all()
    torch.testing.assert_close(dequantize(values, scale)[1], weight[1], rtol=1e-3, atol=0)


def test_blocks_have_scales_of_their_own_and_edges_are_kept():
    weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(1))
    weight[:128, :128] *= 1000
    weight[128:, 256:] = 0
    values, scale = quantize_blocks(weight, (128, 128))
    assert (values.dtype, values.shape, scale.shape) == (DTYPE, (200, 300), (2, 3))
    assert values[:128, :128].float().abs().max() == MAX
    assert scale[1, 2] == 1
    spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:200, :300]
    error = (values.float() * spread - weight).abs()
    assert (error <= (weight.abs() / 16).maximum(spread * 2**-10)).all()
    assert error.max() > 0


def test_matrices_of_a_stack_have_blocks_of_their_own():
    stack = torch.randn(3, 20, 30)
    values, scale = quantize_blocks(stack, (16, 8))
    for index, weight in enumerate(stack):
        alone, own = quantize_blocks(weight, (16, 8))
        assert torch.equal(values[index].float(), alone.float())
        assert torch.equal(scale[index], own)


def test_a_matrix_cut_by_its_outputs_has_the_same_values():
    weight = torch.randn(8, 16)
    values, scale = quantize(weight)
    upper, upper_scale = quantize(weight[:4])
    assert torch.equal(upper.float(), values[:4].float())
    assert torch.equal(upper_scale, scale[:4])


@pytest.fixture
def quantized(model):
    quantize_model(model)
    return model


def test_everything_that_multiplies_is_quantized_but_the_gate(quantized):
    kept = {name for name, parameter in quantized.named_parameters() if parameter.dtype != DTYPE}
    assert all("norm" in name or "embed_tokens" in name or "router.gate" in name for name in kept)
    assert isinstance(quantized.lm_head, Fp8Linear)
    assert isinstance(quantized.layers[1].block_sparse_moe.experts, Fp8Experts)


@pytest.mark.parametrize("block", [None, (128, 128), (16, 24)])
def test_fp8_computes_what_the_dequantized_weights_compute(config, model, tokens, block):
    plain = ArcticModel(config)
    plain.load_state_dict(model.state_dict())
    quantize_model(model, block=block)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            quantized = model.get_parameter(name)
            if quantized.dtype == DTYPE:
                path, _, leaf = name.rpartition(".")
                parameter.copy_(dequantize(quantized, getattr(model.get_submodule(path), f"{leaf}_scale"), block))
        torch.testing.assert_close(model(tokens), plain(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantizing_while_loading_equals_quantizing_what_was_loaded(config, model, tokens, tmp_path, dtype):
    save_model(model.to(dtype), tmp_path / "checkpoint")
    with torch.device("meta"):
        loaded = ArcticModel(config).to(dtype)
    quantize_model(loaded)
    load_weights(loaded, tmp_path / "checkpoint")
    quantize_model(model)
    state = model.state_dict()
    for name, value in loaded.state_dict().items():
        assert value.dtype == state[name].dtype
        assert torch.equal(value.float(), state[name].float())
    assert torch.equal(loaded(tokens), model(tokens))


def test_slices_in_fp8_give_what_the_whole_gives(config, model, tokens, tmp_path):
    save_model(model, tmp_path / "checkpoint")
    quantize_model(model)
    with torch.device("meta"):
        parts = ArcticModel(config, range(2), lm_head=False), ArcticModel(config, range(2, 4), embed=False)
    for part in parts:
        quantize_model(part)
        load_weights(part, tmp_path / "checkpoint")
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    middle, _ = parts[0].run_layers(parts[0].embed(tokens), positions)
    assert torch.equal(parts[1].logits(parts[1].run_layers(middle, positions)[0]), model(tokens))


def test_weights_in_fp8_are_not_saved(quantized, tmp_path):
    with pytest.raises(ValueError, match="save the model that was quantised"):
        save_model(quantized, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
