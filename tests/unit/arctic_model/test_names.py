from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_model.config import ArcticConfig
from arctic_model.model import ArcticModel
from arctic_model.names import hf_name, hf_names, module_name, tensor_shapes
from arctic_model.weights import held_experts

configs = st.builds(
    lambda layers, experts, frequency: ArcticConfig.preset("arctic-tiny").replace(
        num_hidden_layers=layers, num_local_experts=experts, num_experts_per_tok=1, moe_layer_frequency=frequency
    ),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 4),
)


@settings(max_examples=50)
@given(configs)
def test_names_map_one_to_one(config):
    names = list(tensor_shapes(config))
    places = [module_name(name) for name in names]
    assert len(set(places)) == len(names)
    assert [hf_name(name, expert) for name, expert in places] == names


@settings(max_examples=15)
@given(configs)
def test_the_model_has_exactly_the_checkpoint_s_tensors_and_shapes(config):
    with torch.device("meta"):
        model = ArcticModel(config)
    shapes = {}
    for name, parameter in model.named_parameters():
        shape = parameter.shape[1:] if parameter.dim() == 3 else parameter.shape
        shapes |= dict.fromkeys(hf_names(name, held_experts(parameter)), tuple(shape))
    assert shapes == tensor_shapes(config)


def test_names_are_the_published_ones():
    names = set(tensor_shapes(ArcticConfig()))
    assert len(names) == 3 + 35 * (4 + 3 + 3 + 1 + 128 * 3)
    assert {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.34.self_attn.o_proj.weight",
        "model.layers.0.residual_layernorm.weight",
        "model.layers.0.residual_mlp.w3.weight",
        "model.layers.7.block_sparse_moe.gate.weight",
        "model.layers.7.block_sparse_moe.experts.127.w2.weight",
    } <= names
    assert "model.layers.0.block_sparse_moe.mlp.w1.weight" in tensor_shapes(ArcticConfig(moe_layer_frequency=2))


def test_a_share_of_the_experts_has_its_own_names():
    names = hf_names("model.layers.2.block_sparse_moe.experts.w1", range(6, 8))
    assert names == [f"model.layers.2.block_sparse_moe.experts.{expert}.w1.weight" for expert in (6, 7)]


@pytest.mark.parametrize(
    ("name", "expert"), [("model.norm.weight", 1), ("model.layers.0.block_sparse_moe.experts.w1", None)]
)
def test_an_expert_index_is_asked_for_where_it_belongs(name, expert):
    with pytest.raises(ValueError, match="expert index"):
        hf_name(name, expert)
