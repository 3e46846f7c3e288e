from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_model.config import PRESETS, ArcticConfig

# Shortened only in `enc_index` and `auto_map`, which say nothing of the model.
PUBLISHED = """{
  "architectures": ["ArcticForCausalLM"],
  "attention_dropout": 0,
  "auto_map": {"AutoConfig": "configuration_arctic.ArcticConfig"},
  "bos_token_id": 31998,
  "enable_expert_tensor_parallelism": false,
  "enc_index": [0, 1, 34],
  "eos_token_id": 31999,
  "hidden_act": "silu",
  "hidden_size": 7168,
  "initializer_range": 0.02,
  "intermediate_size": 4864,
  "max_position_embeddings": 4096,
  "max_sequence_length": 4096,
  "model_type": "arctic",
  "moe_eval_capacity_factor": 1,
  "moe_layer_frequency": 1,
  "moe_min_capacity": 0,
  "moe_token_dropping": false,
  "moe_train_capacity_factor": 1,
  "num_attention_heads": 56,
  "num_experts_per_tok": 2,
  "num_hidden_layers": 35,
  "num_key_value_heads": 8,
  "num_local_experts": 128,
  "parallel_attn_mlp_res": true,
  "quantization": null,
  "rms_norm_eps": 1e-05,
  "rope_scaling": null,
  "rope_theta": 10000,
  "router_aux_loss_coef": 0.001,
  "sliding_window": null,
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.39.3",
  "use_cache": true,
  "use_residual": true,
  "vocab_size": 32000
}"""

LLAMA = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}


def test_the_published_file_round_trips(tmp_path):
    (tmp_path / "config.json").write_text(PUBLISHED)
    assert ArcticConfig.from_folder(tmp_path).to_dict() == json.loads(PUBLISHED)


def test_class_defaults_are_those_of_the_published_file():
    published = json.loads(PUBLISHED)
    assert {key: published[key] for key in ArcticConfig().to_dict()} == ArcticConfig().to_dict()


def test_the_arctic_preset_is_the_published_model():
    assert ArcticConfig.preset("arctic") == ArcticConfig()


@given(st.dictionaries(st.text().map(lambda key: f"x_{key}"), st.none() | st.booleans() | st.integers() | st.text()))
def test_unknown_keys_survive_every_change(extra):
    config = ArcticConfig.from_dict({**ArcticConfig().to_dict(), **extra}).with_vocab_size(77)
    assert config.to_dict() == {**ArcticConfig().to_dict(), **extra, "vocab_size": 77}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_round_trip(name):
    preset = ArcticConfig.preset(name)
    assert ArcticConfig.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset


def test_small_presets_split_over_two_ranks():
    for name in ("arctic-tiny", "arctic-small", "arctic-466m"):
        preset = ArcticConfig.preset(name)
        assert preset.num_hidden_layers % 2 == preset.num_local_experts % 2 == preset.num_key_value_heads % 2 == 0


def test_layers_have_experts_by_frequency():
    config = ArcticConfig(num_hidden_layers=7, moe_layer_frequency=3)
    assert [layer for layer in range(7) if config.has_experts(layer)] == [2, 5]
    assert config.expert_layers == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_size": 100}, "no multiple of num_attention_heads"),
        ({"hidden_size": 56}, "rotary positions need it even"),
        ({"num_key_value_heads": 5}, "write a number of key-value heads that divides the heads"),
        ({"num_experts_per_tok": 200}, "a token cannot have more experts than there are"),
        ({"parallel_attn_mlp_res": False}, "write true for both"),
        ({"use_residual": False}, "write true for both"),
        ({"vocab_size": -1}, "vocab_size: Input should be greater than 0"),
        ({"num_hidden_layers": "35"}, "num_hidden_layers: Input should be a valid integer"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"type": "wild", "factor": 2}}, "rope_scaling: type"),
        (
            {"rope_scaling": {"type": "linear", "factor": 0.5}},
            "rope_scaling: factor is 0.5; write a number of at least 1",
        ),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling: factor: Field required"),
        ({"attention_bias": True}, "attention_bias is true, and an Arctic has no biases"),
        ({"mlp_bias": True}, "mlp_bias is true, and an Arctic has no biases"),
        ({"head_dim": 64}, r"head_dim \(64\) times the heads is not hidden_size"),
        ({"head_dim": "x"}, "times the heads is not hidden_size"),
        ({"quantization_config": {"quant_method": "fp8"}}, "save the checkpoint unquantised"),
    ],
)
def test_a_bad_value_is_refused_with_its_name(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        ArcticConfig.from_dict({**ArcticConfig().to_dict(), **changes})


def test_keys_that_say_what_an_arctic_is_anyway_are_accepted():
    same = {"attention_bias": False, "mlp_bias": None, "head_dim": 128, "quantization_config": None}
    assert ArcticConfig.from_dict({**ArcticConfig().to_dict(), **same}).to_dict() == {
        **ArcticConfig().to_dict(),
        **same,
    }


def test_keys_whose_absence_is_ambiguous_are_asked_for():
    data = ArcticConfig().to_dict()
    del data["rope_theta"], data["moe_layer_frequency"]
    with pytest.raises(ValueError, match="misses moe_layer_frequency, rope_theta: write them, or name a preset"):
        ArcticConfig.from_dict(data)


def test_an_unknown_preset_names_those_that_exist():
    with pytest.raises(ValueError, match=r"arctic-huge.*arctic, arctic-466m, arctic-small, arctic-tiny"):
        ArcticConfig.preset("arctic-huge")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "is not there"), (b"{", "cannot be read as JSON"), (b"\xff", "cannot be read as JSON"), (b"[]", "a list")],
)
def test_an_unreadable_file_is_named(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json.*{sentence}"):
        ArcticConfig.from_folder(tmp_path)


def test_a_llama_is_an_arctic_without_experts():
    config = ArcticConfig.from_dict(LLAMA)
    assert config.expert_layers == 0
    assert (config.model_type, config.head_dim, config.rope_theta) == ("arctic", 64, 100000.0)
    assert not config.tie_word_embeddings


def test_what_a_llama_s_file_leaves_out_is_llama_s_default():
    config = ArcticConfig.from_dict(LLAMA | {"num_key_value_heads": None})
    assert (config.bos_token_id, config.eos_token_id, config.num_key_value_heads) == (1, 2, 9)
    assert ArcticConfig.from_dict(LLAMA | {"eos_token_id": None}).eos_token_id is None


def test_a_name_that_is_null_is_one_that_is_not_said():
    """As transformers writes what is not set, where it writes all of it."""
    nulls = {"torch_dtype": None, "architectures": None}
    for data in (LLAMA, ArcticConfig.preset("arctic-tiny").to_dict()):
        config = ArcticConfig.from_dict({**data, **nulls})
        assert (config.torch_dtype, config.architectures) == ("bfloat16", ["ArcticForCausalLM"])


def test_positions_are_read_from_newer_files_too():
    rope = {"rope_type": "yarn", "rope_theta": 500000.0, "factor": 2.0}
    data = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    config = ArcticConfig.from_dict({**data, "rope_parameters": rope})
    assert config.rope_theta == 500000.0
    assert config.rope is not None
    assert (config.rope.type, config.rope.factor) == ("yarn", 2.0)
    plain = ArcticConfig.from_dict({**data, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}})
    assert (plain.rope_theta, plain.rope) == (7.0, None)
    assert ArcticConfig.from_dict({**data, "rope_parameters": {"rope_theta": 7.0}}).rope is None


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 7.0, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        {"rope_scaling": None, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}},
        {"rope_theta": 5.0, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}},
        {"rope_theta": None, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}},
        {"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"factor": 9.0}},
    ],
)
def test_positions_that_a_file_has_in_both_forms_are_read_as_hugging_face_reads_them(keys):
    config = ArcticConfig.from_dict({key: value for key, value in LLAMA.items() if key != "rope_theta"} | keys)
    assert config.rope is not None
    assert (config.rope_theta, config.rope.type, config.rope.factor) == (7.0, "linear", 2.0)


def test_scaled_positions_of_newer_files_are_refused_too_where_they_are_not_known():
    with pytest.raises(ValueError, match="rope_scaling: type: Input should be 'linear'"):
        ArcticConfig.from_dict({**LLAMA, "rope_parameters": {"rope_type": "llama3", "factor": 8.0}})


def test_a_changed_configuration_does_not_contradict_itself_in_newer_names():
    rope = {"rope_type": "default", "rope_theta": 7.0}
    config = ArcticConfig.from_dict({**LLAMA, "rope_parameters": rope, "dtype": "float32"})
    assert config.torch_dtype == "float32"
    written = config.stretched("linear", 2.0).replace(torch_dtype="bfloat16").to_dict()
    assert not {"rope_parameters", "dtype"} & set(written)
    assert "rope_theta" not in written["rope_scaling"]
    assert (written["rope_theta"], written["torch_dtype"]) == (7.0, "bfloat16")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attention_bias": True}, "an Arctic has no biases"),
        ({"head_dim": 100}, "times the heads is not hidden_size"),
        ({"quantization_config": {"quant_method": "gptq"}}, "save the checkpoint unquantised"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling"),
        ({"model_type": "qwen3"}, "model_type is 'qwen3'"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None; write a whole number"),
        ({"num_hidden_layers": "30"}, "num_hidden_layers is '30'; write a whole number"),
    ],
)
def test_a_checkpoint_that_is_neither_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        ArcticConfig.from_dict({**LLAMA, **changes})


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_a_stretched_model_reaches_as_much_further_and_its_file_says_so(kind):
    tiny = ArcticConfig.preset("arctic-tiny")
    stretched = ArcticConfig.from_dict(tiny.stretched(kind, 2.5).to_dict())
    assert stretched.max_position_embeddings == 2560
    assert (stretched.rope.type, stretched.rope.factor) == (kind, 2.5)
    assert stretched.rope.original_max_position_embeddings == tiny.max_position_embeddings
    with pytest.raises(ValueError, match=r"rope_scaling is .* already, by 2.5: positions are stretched once"):
        stretched.stretched(kind, 2)
