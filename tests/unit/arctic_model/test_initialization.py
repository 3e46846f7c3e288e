from __future__ import annotations

import math

import torch

from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel


def test_the_same_seed_gives_the_same_weights_and_another_does_not(config, model):
    again, other = ArcticModel(config), ArcticModel(config)
    init_weights(again, seed=3)
    init_weights(other, seed=4)
    weights = model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())
    assert not any(
        torch.equal(value, weights[name]) for name, value in other.state_dict().items() if "norm" not in name
    )


def test_a_slice_with_a_share_of_the_experts_has_the_same_weights(config, model):
    halved = config.replace(num_local_experts=2)
    with torch.device("meta"):
        part = ArcticModel(halved, range(1, 4), embed=False)
    init_weights(part, seed=3, first_expert=2)
    whole = model.state_dict()
    for name, value in part.state_dict().items():
        if "router" not in name:
            assert torch.equal(value, whole[name][2:] if ".experts." in name else whole[name])


def test_spread_is_the_configuration_s_and_smaller_where_the_residual_stream_is_written(config, model):
    weights = model.state_dict()
    shrunk = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
    for name, expected in (
        ("lm_head.weight", config.initializer_range),
        ("model.layers.1.block_sparse_moe.experts.w1", config.initializer_range),
        ("model.layers.1.block_sparse_moe.experts.w2", shrunk),
        ("model.layers.1.residual_mlp.w2.weight", shrunk),
        ("model.layers.0.self_attn.o_proj.weight", shrunk),
    ):
        assert abs(weights[name].std() / expected - 1) < 0.1
    assert (weights["model.layers.1.residual_layernorm.weight"] == 1).all()


def test_the_dtype_only_rounds(config, model):
    with torch.device("meta"):
        half = ArcticModel(config).to(torch.bfloat16)
    init_weights(half, seed=3)
    assert all(torch.equal(value, model.state_dict()[name].bfloat16()) for name, value in half.state_dict().items())
