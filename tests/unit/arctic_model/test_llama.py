from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from arctic_model.config import ArcticConfig
from arctic_model.llama import LlamaFolder, import_llama
from arctic_model.model import ArcticModel
from arctic_model.names import llama_name, tensor_shapes
from arctic_model.upcycle import dense_name, grown_config
from arctic_model.weights import SINGLE_FILE, load_weights

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 18, "intermediate_size": 20,
    "num_hidden_layers": 5, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 30,
    "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "llama"
    made.mkdir()
    shapes = tensor_shapes(ArcticConfig.from_dict(LLAMA))
    tensors = {llama_name(name): 0.3 * torch.randn(shape) for name, shape in shapes.items() if name != "lm_head.weight"}
    save_file(tensors, made / SINGLE_FILE)
    (made / "config.json").write_text(json.dumps(LLAMA))
    (made / "chat_template.jinja").write_text("{{ messages }}")
    return made


def loaded(folder):
    with torch.device("meta"):
        model = ArcticModel(ArcticConfig.from_folder(folder))
    load_weights(model, folder)
    return model


@pytest.fixture
def grown(folder, tmp_path):
    import_llama(LlamaFolder(folder), tmp_path / "arctic", experts=3, every=3)
    return tmp_path / "arctic"


def test_the_arctic_computes_what_the_llama_does_to_the_bit(folder, grown, tokens):
    model = loaded(grown)
    assert [model.config.has_experts(layer) for layer in range(7)] == [False, False, True] * 2 + [False]
    assert (grown / "chat_template.jinja").read_text() == "{{ messages }}"
    assert torch.equal(model(tokens % 30), loaded(folder)(tokens % 30))


def test_every_tensor_keeps_the_type_that_it_has(folder, tmp_path):
    tensors = load_file(folder / SINGLE_FILE)
    halves = {name: tensor.bfloat16() if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}
    save_file(halves, folder / SINGLE_FILE)
    import_llama(LlamaFolder(folder), tmp_path / "arctic", experts=3, every=3)
    for name, tensor in load_file(tmp_path / "arctic" / SINGLE_FILE).items():
        kept = "norm" in name and not name.startswith(("model.layers.2.", "model.layers.5."))  # what is not put in
        assert tensor.dtype == (torch.float32 if kept else torch.bfloat16), name
    assert ArcticConfig.from_folder(tmp_path / "arctic").torch_dtype == "bfloat16"


def test_it_is_more_than_the_llama_as_soon_as_one_hybrid_layer_says_anything(folder, grown, tokens):
    model = loaded(grown)
    with torch.no_grad():
        model.layers[2].block_sparse_moe.experts.w2.add_(0.1)
    assert not torch.allclose(model(tokens % 30), loaded(folder)(tokens % 30))


def test_training_reaches_what_was_put_in_between_at_its_second_step(grown, tokens):
    model = loaded(grown)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        logits, _ = model.forward_with_loss(tokens % 30)
        logits.square().mean().backward()
        optimizer.step()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


@given(st.integers(1, 80), st.integers(2, 81))
def test_every_layer_of_the_llama_is_there_once_and_in_order(dense, every):
    llama = ArcticConfig.from_dict({**LLAMA, "num_hidden_layers": dense})
    if every > dense + 1:
        with pytest.raises(ValueError, match=f"write a number from 2 to {dense + 1}"):
            grown_config(llama, experts=8, every=every)
        return
    config = grown_config(llama, experts=8, every=every)
    names = [
        dense_name(config, f"model.layers.{layer}.input_layernorm.weight") for layer in range(config.num_hidden_layers)
    ]
    assert [name for name in names if name] == [f"model.layers.{n}.input_layernorm.weight" for n in range(dense)]
    assert [name is None for name in names] == [config.has_experts(layer) for layer in range(len(names))]
    assert config.expert_layers >= 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"architectures": ["MistralForCausalLM"], "model_type": "mistral"},
            "is a MistralForCausalLM of model_type 'mis",
        ),
        ({"architectures": ["LlamaForSequenceClassification"]}, "a LlamaForCausalLM alone can become an Arctic"),
        ({"attention_bias": True}, "attention_bias is true, and an Arctic has no biases"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling: type: Input should be 'linear'"),
        ({"head_dim": 4}, r"head_dim \(4\) times the heads is not hidden_size"),
        ({"hidden_act": "gelu"}, "hidden_act: Input should be 'silu'"),
    ],
)
def test_what_is_no_llama_is_refused_by_name(folder, change, sentence):
    (folder / "config.json").write_text(json.dumps({**LLAMA, **change}))
    with pytest.raises(ValueError, match=sentence):
        LlamaFolder(folder)


def test_a_tensor_without_a_place_is_refused_before_anything_is_written(folder):
    tensors = load_file(folder / SINGLE_FILE)
    save_file(tensors | {"model.layers.0.self_attn.q_proj.bias": torch.ones(18)}, folder / SINGLE_FILE)
    with pytest.raises(
        ValueError, match=r"has model\.layers\.0\.self_attn\.q_proj\.bias that the model has no place for"
    ):
        LlamaFolder(folder)
