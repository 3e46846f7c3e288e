"""What checkpoints say of their weights, in the words of those who publish them."""

from __future__ import annotations

import json

import pytest

from arctic_model.quantization import (
    Quantization,
    modelopt_file,
    parse_quantization,
    quantization_config,
    read_quantization,
)

EIGHT = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}


def group(**weights):
    return {"targets": ["Linear"], "weights": {**EIGHT, **weights}, "input_activations": None}


def compressed(*groups):
    return {"quant_method": "compressed-tensors", "config_groups": {f"group_{n}": g for n, g in enumerate(groups)}}


@pytest.mark.parametrize(
    ("content", "stored"),
    [
        (compressed(group(strategy="tensor")), Quantization("compressed-tensors", "tensor")),
        (
            compressed(group(strategy="channel"), group(strategy="channel")),
            Quantization("compressed-tensors", "channel"),
        ),
        (
            compressed(group(strategy="block", block_structure=[64, 128])),
            Quantization("compressed-tensors", "block", (64, 128)),
        ),
        (
            compressed(group(strategy="block", block_structure="128x128")),
            Quantization("compressed-tensors", "block", (128, 128)),
        ),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, Quantization("modelopt", "tensor")),
        ({"quant_method": "modelopt", "quant_algo": "fp8_pb_wo"}, Quantization("modelopt", "block")),
        ({"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}, Quantization("modelopt", "channel")),
        ({"quant_method": "fp8", "activation_scheme": "static"}, Quantization("fp8", "tensor")),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, Quantization("fp8", "block")),
    ],
)
def test_published_forms_are_read(content, stored):
    assert parse_quantization(content, "config.json") == stored


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            {"quant_method": "gptq", "bits": 4},
            r"weights are stored as quant_method 'gptq', and FP8 alone is read \(comp",
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "stored as quant_algo 'NVFP4'"),
        (compressed(group(num_bits=4, type="int", strategy="group")), "stored as group_0 of 4 bits int"),
        (compressed(group(strategy="group")), "stored as group_0 with strategy 'group'"),
        (compressed(group(strategy="block")), "a block of None has no meaning"),
        (compressed(group(strategy="tensor"), group(strategy="channel")), "has 2 forms of weights; write one"),
        ({"quant_method": "compressed-tensors"}, "config_groups is None; write an object"),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, r"a block of \[128, 0\] has no meaning"),
        ("fp8", "quantization_config is 'fp8'; write an object"),
    ],
)
def test_what_is_not_read_is_named(content, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_quantization(content, "config.json")


@pytest.mark.parametrize("layout", ["compressed-tensors", "modelopt", "fp8"])
@pytest.mark.parametrize("scales", ["tensor", "channel", "block"])
def test_what_is_written_is_read_as_it_was_meant(layout, scales, tmp_path):
    if (layout, scales) == ("fp8", "channel"):
        pytest.skip("that layout has none")
    stored = Quantization(layout, scales)
    config = json.loads(json.dumps(quantization_config(stored, ["lm_head"])))
    assert parse_quantization(config, "config.json") == stored
    (tmp_path / "config.json").write_text("{}")
    assert read_quantization(tmp_path) is None
    if layout == "modelopt":  # also in the older place alone
        (tmp_path / "hf_quant_config.json").write_text(json.dumps(modelopt_file(stored, ["lm_head"])))
        assert read_quantization(tmp_path) == stored


KV_SCHEME = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}


@pytest.mark.parametrize(
    "content",
    [
        {"quant_method": "modelopt", "quant_algo": None, "kv_cache_quant_algo": "FP8"},
        {"quant_method": "modelopt", "kv_cache_scheme": KV_SCHEME},
        {"quant_method": "compressed-tensors", "config_groups": {}, "kv_cache_scheme": KV_SCHEME},
        compressed({"targets": ["LlamaAttention"], "weights": None, "input_activations": KV_SCHEME}),
    ],
)
def test_where_the_cache_alone_is_quantised_weights_are_as_they_are(content):
    assert parse_quantization(content, "config.json") is None


def test_names_and_shapes_of_scales_are_those_that_are_published():
    name, shape = "model.layers.0.self_attn.k_proj.weight", (200, 300)
    compressed, modelopt = (
        [Quantization(layout, scales).scale_shape(shape) for scales in ("tensor", "channel", "block")]
        for layout in ("compressed-tensors", "modelopt")
    )
    assert compressed == [(1,), (200, 1), (2, 3)]
    assert modelopt == [(), (200,), (2, 1, 3, 1)]
    assert Quantization("fp8", "block").scale_name(name) == f"{name}_scale_inv"
    assert Quantization("fp8", "tensor").scale_name(name) == f"{name}_scale"
    assert Quantization("compressed-tensors", "block").scale_name(name) == f"{name}_scale"
