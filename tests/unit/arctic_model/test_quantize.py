from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from arctic_model import fp8
from arctic_model.config import ArcticConfig
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel
from arctic_model.names import tensor_shapes
from arctic_model.quantization import Quantization
from arctic_model.quantize import KEPT, compare, quantize_as, quantize_checkpoint, spread
from arctic_model.weights import SINGLE_FILE, Checkpoint, CheckpointError, load_weights, save_model, take_fp8_form

FORMS = [
    Quantization("compressed-tensors", "tensor"),
    Quantization("compressed-tensors", "channel"),
    Quantization("compressed-tensors", "block"),
    Quantization("modelopt", "tensor"),
    Quantization("modelopt", "channel"),
    Quantization("modelopt", "block"),
    Quantization("fp8", "tensor"),
    Quantization("fp8", "block"),
]


@pytest.fixture(scope="session")
def wide(config):
    """No size is a multiple of a block, and a tensor is larger than what is read at once of it."""
    return config.replace(hidden_size=216, intermediate_size=150, num_attention_heads=6, vocab_size=2600)


@pytest.fixture(scope="session")
def published(wide, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "published"
    model = ArcticModel(wide)
    init_weights(model, seed=3)
    save_model(model.to(torch.bfloat16), folder)
    return folder


def loaded(folder, served=False):
    config = Checkpoint(folder).config
    with torch.device("meta"):
        model = ArcticModel(config)
    if served:
        take_fp8_form(model, folder)
    load_weights(model, folder)
    return model


@pytest.mark.parametrize("stored", FORMS, ids=lambda form: f"{form.layout} {form.scales}")
def test_what_is_read_are_values_times_scales(stored, wide, published, tmp_path):
    quantize_checkpoint(published, tmp_path / "fp8", stored, max_shard_bytes=300_000)
    before, after = Checkpoint(published), Checkpoint(tmp_path / "fp8")
    assert after.quantization == stored
    for name, shape in tensor_shapes(wide).items():
        tensor = before.tensor(name, shape)
        if not name.endswith(KEPT):
            values, scale = quantize_as(tensor, stored)
            tensor = values.float() * spread(scale, stored, shape)
        assert torch.equal(after.tensor(name, shape), tensor), name


@pytest.mark.parametrize("stored", FORMS, ids=lambda form: f"{form.layout} {form.scales}")
def test_it_is_served_as_it_is(stored, published, tmp_path, tokens):
    quantize_checkpoint(published, tmp_path / "fp8", stored)
    model, wide = loaded(tmp_path / "fp8", served=True), loaded(tmp_path / "fp8")
    forms = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert forms["model.layers.1.block_sparse_moe.experts.w2"] == fp8.DTYPE
    assert forms["lm_head.weight"] == torch.bfloat16
    experts = model.layers[1].block_sparse_moe.experts
    exact = fp8.dequantize(experts.w2.data, experts.w2_scale, experts.block)
    assert torch.equal(exact, wide.layers[1].block_sparse_moe.experts.w2)
    stored_bytes = load_file(tmp_path / "fp8" / SINGLE_FILE)["model.layers.1.block_sparse_moe.experts.2.w2.weight"]
    assert torch.equal(experts.w2[2].view(torch.uint8), stored_bytes.view(torch.uint8))


@pytest.mark.parametrize("form", ["channel", "block"])
def test_other_scales_than_a_model_has_room_for_are_refused(form, published, tmp_path):
    quantize_checkpoint(published, tmp_path / "fp8", Quantization("compressed-tensors", form))
    with torch.device("meta"):
        model = ArcticModel(Checkpoint(published).config)
    fp8.quantize_model(model, block=None if form == "block" else (128, 128))
    with pytest.raises(CheckpointError, match="has scales of other blocks than the model is made for"):
        load_weights(model, tmp_path / "fp8")


@pytest.mark.parametrize("stored", [FORMS[1], FORMS[-1]], ids=lambda form: form.scales)
def test_a_share_of_the_layers_takes_the_same_form(stored, published, tmp_path):
    quantize_checkpoint(published, tmp_path / "fp8", stored)
    whole = loaded(tmp_path / "fp8", served=True).state_dict()
    with torch.device("meta"):
        part = ArcticModel(Checkpoint(tmp_path / "fp8").config, range(3, 4), embed=False)
    take_fp8_form(part, tmp_path / "fp8")
    load_weights(part, tmp_path / "fp8")
    for name, tensor in part.state_dict().items():
        assert torch.equal(tensor.float(), whole[name].float())


def rewrite(folder, change):
    tensors = load_file(folder / SINGLE_FILE)
    change(tensors)
    save_file(tensors, folder / SINGLE_FILE)


NAME = "model.layers.1.block_sparse_moe.experts.2.w1.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop(f"{NAME}_scale"), f"has {NAME} in FP8 and no {NAME}_scale: copy"),
        (lambda t: t.update({f"{NAME}_scale": torch.ones(3)}), rf"{NAME}_scale is not \[150, 1\] in floating point"),
        (lambda t: t[f"{NAME}_scale"].fill_(float("inf")), f"{NAME}_scale holds NaN or infinity"),
        (lambda t: t[NAME].view(torch.uint8)[7, 7].fill_(0xFF), f"{NAME} holds NaN or infinity"),
        (
            lambda t: t.update({NAME: t[NAME].to(torch.bfloat16)}),
            "some experts of .*experts.w1 are in FP8 and others are",
        ),
        (
            lambda t: t.update({f"{NAME}_zero_point": torch.ones(1)}),
            f"has {NAME}_zero_point that the model has no place",
        ),
    ],
)
def test_what_is_wrong_with_scales_is_named(published, tmp_path, change, sentence):
    quantize_checkpoint(published, tmp_path / "fp8", FORMS[1])
    rewrite(tmp_path / "fp8", change)
    with pytest.raises(CheckpointError, match=sentence):
        loaded(tmp_path / "fp8", served=True)


def test_scales_of_activations_are_passed_over(published, tmp_path):
    quantize_checkpoint(published, tmp_path / "fp8", FORMS[3])
    before = loaded(tmp_path / "fp8", served=True).state_dict()
    names = ("q_proj.input_scale", "q_proj.activation_scale", "k_proj.k_scale", "kv_scale")
    extra = {f"model.layers.1.self_attn.{name}": torch.ones(()) for name in names}
    rewrite(tmp_path / "fp8", lambda tensors: tensors.update(extra))
    after = loaded(tmp_path / "fp8", served=True).state_dict()
    assert all(torch.equal(after[name].float(), before[name].float()) for name in before)


def test_weights_are_as_they_are_where_the_cache_alone_is_quantised(published, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(published, copy)
    said = {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}
    (copy / "hf_quant_config.json").write_text(json.dumps(said))
    scales = {f"model.layers.1.self_attn.{name}_proj.{name}_scale": torch.ones(()) for name in "kv"}
    rewrite(copy, lambda tensors: tensors.update(scales))
    before, after = loaded(published).state_dict(), loaded(copy).state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_scales_of_whole_tensors_may_have_the_name_of_those_of_blocks(published, tmp_path):
    """As Hugging Face's own FP8 has it, where it is given no blocks."""
    quantize_checkpoint(published, tmp_path / "fp8", FORMS[6])
    before = loaded(tmp_path / "fp8", served=True).state_dict()

    def rename(tensors):
        for name in [name for name in tensors if name.endswith("weight_scale")]:
            tensors[f"{name}_inv"] = tensors.pop(name)

    rewrite(tmp_path / "fp8", rename)
    after = loaded(tmp_path / "fp8", served=True).state_dict()
    assert all(torch.equal(after[name].float(), before[name].float()) for name in before)


def test_what_is_not_converted_is_named_in_full(published, tmp_path):
    """Readers disagree on patterns: Hugging Face takes them for regular expressions, vLLM for names."""
    quantize_checkpoint(published, tmp_path / "fp8", FORMS[7])
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    assert config["quantization_config"]["modules_to_not_convert"] == [
        "model.embed_tokens",
        "model.layers.1.block_sparse_moe.gate",
        "model.layers.3.block_sparse_moe.gate",
        "lm_head",
    ]


def test_the_report_says_what_rounding_changed(published, tmp_path, tokens):
    errors = {form.scales: quantize_checkpoint(published, tmp_path / form.scales, form) for form in FORMS[:3]}
    for of_layers in errors.values():
        assert [error.layer for error in of_layers] == [0, 1, 2, 3]
        assert all(0.01 < error.relative <= error.worst_relative < 0.05 for error in of_layers)
    found = compare(published, tmp_path / "tensor", tokens)
    exact, rounded = loaded(published)(tokens), loaded(tmp_path / "tensor")(tokens)
    losses = [
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).exp().item()
        for logits in (exact, rounded)
    ]
    assert found.perplexities == pytest.approx(losses, rel=1e-5)
    assert len(found.layers) == 4
    assert 0 < found.layers[0] < 0.2
    assert compare(published, published, tokens).layers == [0.0] * 4


def test_a_model_that_is_wholly_wrong_has_a_perplexity_all_the_same(wide, published, tmp_path):
    spoilt = ArcticModel(wide)
    init_weights(spoilt, seed=3)
    with torch.no_grad():
        spoilt.lm_head.weight.mul_(1e5)
    save_model(spoilt, tmp_path / "spoilt")
    tokens = torch.arange(22).view(2, 11)
    before, after = compare(published, tmp_path / "spoilt", tokens).perplexities
    assert math.isfinite(before)
    assert after == math.inf


def test_tokens_that_the_model_has_not_are_named(published):
    with pytest.raises(ValueError, match=r"token 2600.* has 2600"):
        compare(published, published, torch.tensor([[1, 2600]]))


def test_what_is_in_fp8_can_be_given_other_scales(published, tmp_path):
    quantize_checkpoint(published, tmp_path / "blocks", FORMS[7])
    (tmp_path / "blocks" / "tokenizer.json").write_text("{}")
    quantize_checkpoint(tmp_path / "blocks", tmp_path / "channels", FORMS[1])
    assert Checkpoint(tmp_path / "channels").quantization == FORMS[1]
    assert (tmp_path / "channels" / "tokenizer.json").read_text() == "{}"
    config = json.loads((tmp_path / "channels" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    with pytest.raises(ValueError, match="quantization_config is set: save the checkpoint unquantised"):
        ArcticConfig.from_folder(tmp_path / "channels")
