import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from arctic_model.config import ArcticConfig
from arctic_model.initialization import init_weights
from arctic_model.lora import A, B, LoraLinear, adapter_shapes, add_adapter, merged, targets
from arctic_model.model import ArcticModel
from arctic_model.peft import CONFIG_FILE, WEIGHTS_FILE, AdapterError, read_adapter, write_adapter

CONFIG = ArcticConfig.preset("arctic-tiny").replace(
    vocab_size=40, hidden_size=16, intermediate_size=12, num_hidden_layers=3, moe_layer_frequency=2, num_local_experts=2
)
TOKENS = torch.arange(14).view(2, 7)


def adapted(seed=0, rank=2):
    model = ArcticModel(CONFIG)
    init_weights(model, 1)
    add_adapter(model, rank, 4, seed)
    return model


def tensors_of(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def filled(model):
    """Give the adapter's zeros values."""
    with torch.no_grad():
        for name, parameter in tensors_of(model).items():
            if f".{B}." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    return model


def test_a_fresh_adapter_changes_no_bit():
    plain = ArcticModel(CONFIG)
    init_weights(plain, 1)
    assert torch.equal(adapted()(TOKENS), plain(TOKENS))


def test_it_stands_on_what_every_token_passes_and_alone_is_trained():
    model = adapted(rank=3)
    assert {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()} == adapter_shapes(CONFIG, 3)
    hybrid = {name.split(".", 3)[3] for name in targets(CONFIG) if name.startswith("model.layers.1.")}
    assert hybrid == {f"self_attn.{p}_proj" for p in "qkvo"} | {f"residual_mlp.w{n}" for n in "123"}
    dense = {name.split(".", 3)[3] for name in targets(CONFIG) if name.startswith("model.layers.0.")}
    assert dense == {f"self_attn.{p}_proj" for p in "qkvo"} | {f"block_sparse_moe.mlp.w{n}" for n in "123"}


def test_its_first_values_follow_from_the_seed_and_draw_from_no_other_random_state():
    state = torch.get_rng_state()
    model = ArcticModel(CONFIG)
    torch.set_rng_state(state)
    add_adapter(model, 2, 4, 0)
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = (tensors_of(adapted(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert [name for name in first if f".{A}." in name and torch.equal(first[name], other[name])] == []
    assert not any(tensor.any() for name, tensor in first.items() if f".{B}." in name)


def test_merged_weights_compute_what_weights_with_additions_do():
    model = filled(adapted())
    expected = model(TOKENS)
    for name in targets(CONFIG):
        path, _, leaf = name.rpartition(".")
        layer = model.get_submodule(name)
        assert isinstance(layer, LoraLinear)
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
        plain.weight.data = merged(layer.weight, layer.lora_A.weight, layer.lora_B.weight, layer.scale)
        setattr(model.get_submodule(path), leaf, plain)
    torch.testing.assert_close(model(TOKENS), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def folder(tmp_path):
    write_adapter(tmp_path, {n: t.detach() for n, t in tensors_of(filled(adapted())).items()}, 2, 4, "/weights")
    return tmp_path


def test_what_was_written_is_read(folder):
    model, read = filled(adapted()), read_adapter(folder, CONFIG)
    assert set(read) == set(targets(CONFIG))
    for name, addition in read.items():
        layer = model.get_submodule(name)
        assert torch.equal(addition.a, layer.lora_A.weight)
        assert torch.equal(addition.b, layer.lora_B.weight)
        assert addition.scale == layer.scale == 2


def test_keys_are_those_of_peft(folder):
    keys = set(load_file(folder / WEIGHTS_FILE))
    assert "base_model.model.model.layers.1.residual_mlp.w2.lora_B.weight" in keys
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in keys


def change(folder, **settings):
    content = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(content | settings))


def test_ranks_and_scales_may_differ_from_module_to_module(folder):
    tensors = load_file(folder / WEIGHTS_FILE)
    for name in list(tensors):
        if "q_proj" in name:
            tensors[name] = tensors[name][:1] if A in name else tensors[name][:, :1]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    change(folder, rank_pattern={"q_proj": 1}, alpha_pattern={"layers.0.self_attn.k_proj": 8}, use_rslora=True)
    read = read_adapter(folder, CONFIG)
    assert read["model.layers.0.self_attn.q_proj"].scale == 4
    assert read["model.layers.0.self_attn.k_proj"].scale == pytest.approx(8 / 2**0.5)
    assert read["model.layers.2.self_attn.k_proj"].scale == pytest.approx(4 / 2**0.5)


@pytest.fixture
def llama():
    return ArcticConfig.from_dict(
        {"model_type": "llama", "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1, "vocab_size": 9}
        | {"num_attention_heads": 2}
    )


def test_the_adapter_of_a_llama_is_written_under_its_names_and_read(tmp_path, llama):
    tensors = {name: torch.randn(shape) for name, shape in adapter_shapes(llama, 2).items()}
    write_adapter(tmp_path, tensors, 2, 4, "/weights", is_llama=True)
    modules = {name.split(".", 2)[2].rsplit(".", 2)[0] for name in load_file(tmp_path / WEIGHTS_FILE)}
    matrices = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    assert modules == {f"model.layers.0.{matrix}" for matrix in matrices}
    said = json.loads((tmp_path / CONFIG_FILE).read_text())["target_modules"]
    others = {"model.embed_tokens", "model.layers.0.mlp", "lm_head"}
    assert {module for module in modules | others if re.fullmatch(said, module)} == modules  # as peft looks for them
    read = read_adapter(tmp_path, llama)
    assert set(read) == set(targets(llama))
    assert all(torch.equal(addition.a, tensors[f"{name}.{A}.weight"]) for name, addition in read.items())


def test_the_adapter_of_a_llama_is_read_under_its_names(tmp_path, llama):
    write_adapter(tmp_path, {}, 1, 1, "")
    pair = {f"{A}.weight": torch.ones(1, 8), f"{B}.weight": torch.ones(6, 1)}
    key = "base_model.model.model.layers.0.mlp.gate_proj"
    save_file({f"{key}.{name}": tensor for name, tensor in pair.items()}, tmp_path / WEIGHTS_FILE)
    assert list(read_adapter(tmp_path, llama)) == ["model.layers.0.block_sparse_moe.mlp.w1"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; LORA alone is read"),
        ({"bias": "all"}, "bias is 'all', which is not read"),
        ({"use_dora": True}, "use_dora is True, which is not read"),
        ({"alora_invocation_tokens": [5, 7]}, r"alora_invocation_tokens is \[5, 7\], which is not read"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights is 'pissa_niter_16', which changed the base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora', which changed the base"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga', which changed the base"),
        ({"r": "8"}, "r is '8' and lora_alpha 4: write a whole number"),
        ({"r": 3}, r"w1 has lora_A \[2, 16\] and lora_B \[12, 2\] where the model has \[3, 16\] and \[12, 3\]"),
    ],
)
def test_what_is_no_such_adapter_is_refused_in_a_sentence(folder, settings, sentence):
    change(folder, **settings)
    with pytest.raises(AdapterError, match=sentence):
        read_adapter(folder, CONFIG)


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal", None])
def test_how_an_adapter_began_makes_no_difference_where_the_base_was_left_alone(folder, start):
    change(folder, init_lora_weights=start)
    assert set(read_adapter(folder, CONFIG)) == set(targets(CONFIG))


def test_an_adapter_of_another_model_is_refused(folder):
    with pytest.raises(AdapterError, match="it was trained on another model"):
        read_adapter(folder, CONFIG.replace(hidden_size=32))
    with pytest.raises(AdapterError, match=r"layers\.2\..* stands on nothing that an adapter of this model can"):
        read_adapter(folder, CONFIG.replace(num_hidden_layers=2))


def test_files_that_are_missing_or_damaged_are_named(folder, tmp_path):
    tensors = load_file(folder / WEIGHTS_FILE)
    half = {name: tensor for name, tensor in tensors.items() if A in name or "layers.0.self_attn.q" not in name}
    save_file(half, folder / WEIGHTS_FILE)
    with pytest.raises(AdapterError, match=r"misses model\.layers\.0\.self_attn\.q_proj\.lora_B\.weight"):
        read_adapter(folder, CONFIG)
    (folder / WEIGHTS_FILE).write_bytes(b"no")
    with pytest.raises(AdapterError, match="is damaged or was cut short"):
        read_adapter(folder, CONFIG)
    with pytest.raises(AdapterError, match="is not there: name a folder with an adapter"):
        read_adapter(tmp_path / "nowhere", CONFIG)
