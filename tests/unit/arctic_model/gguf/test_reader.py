import gguf
import numpy as np
import pytest
import torch

from arctic_model.config import RopeScaling
from arctic_model.gguf.reader import GgufLlama
from arctic_model.names import llama_name, tensor_shapes

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
}  # fmt: skip


def permute(weights, n_head, n_head_kv):
    """As `convert_hf_to_gguf.py` of llama.cpp has it (`LlamaModel.permute`)."""
    if n_head_kv is not None and n_head != n_head_kv:
        n_head = n_head_kv
    return (
        weights.reshape(n_head, 2, weights.shape[0] // n_head // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def random_tensors():
    generator = np.random.default_rng(1)
    shapes = {
        "model.embed_tokens": (40, 32), "model.norm": (32,), "lm_head": (40, 32),
        **{
            f"model.layers.{layer}.{name}": shape
            for layer in range(2)
            for name, shape in {
                "input_layernorm": (32,), "post_attention_layernorm": (32,), "self_attn.q_proj": (32, 32),
                "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32), "self_attn.o_proj": (32, 32),
                "mlp.gate_proj": (64, 32), "mlp.up_proj": (64, 32), "mlp.down_proj": (32, 64),
            }.items()
        },
    }  # fmt: skip
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(path, tensors, kind=gguf.GGMLQuantizationType.F32, architecture="llama", say=lambda writer: None, **extra):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_context_length(77)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    for name, value in extra.items():
        getattr(writer, f"add_{name}")(value)
    say(writer)
    for name, tensor in tensors.items():
        if name.endswith(("q_proj", "k_proj")):
            tensor = permute(tensor, 4, 2 if name.endswith("k_proj") else 4)
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        matrix = tensor.ndim == 2
        values = gguf.quants.quantize(np.ascontiguousarray(tensor), kind) if matrix else tensor
        writer.add_tensor(f"{name}.weight", values, raw_dtype=kind if matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_all(source):
    shapes = tensor_shapes(source.config)
    return {llama_name(name).removesuffix(".weight"): source.tensor(name, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(("kind", "dtype"), [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_tensors_are_those_of_the_model_before_it_was_converted(tmp_path, kind, dtype):
    tensors = random_tensors()
    source = GgufLlama(write(tmp_path / "model.gguf", tensors, gguf.GGMLQuantizationType[kind]))
    assert source.dtype("lm_head.weight") == dtype
    assert source.dtype("model.norm.weight") == torch.float32
    assert (source.config.rope_theta, source.config.rms_norm_eps) == (5000.0, 1e-5)
    assert (source.config.max_position_embeddings, source.config.vocab_size) == (77, 40)
    for name, tensor in read_all(source).items():
        wanted = torch.from_numpy(tensors[name])
        assert torch.equal(tensor, wanted.to(dtype).float() if wanted.dim() == 2 else wanted)


def test_quantised_tensors_are_widened(tmp_path):
    tensors = random_tensors()
    source = GgufLlama(write(tmp_path / "model.gguf", tensors, gguf.GGMLQuantizationType.Q8_0))
    assert source.dtype("lm_head.weight") == torch.float32
    for name, tensor in read_all(source).items():
        wanted = torch.from_numpy(tensors[name])
        assert (tensor - wanted).abs().max() <= wanted.abs().max() / 127


def test_tied_embeddings_become_a_matrix_of_their_own(tmp_path):
    tensors = random_tensors()
    del tensors["lm_head"]
    read = read_all(GgufLlama(write(tmp_path / "model.gguf", tensors)))
    assert torch.equal(read["lm_head"], torch.from_numpy(tensors["model.embed_tokens"]))


@pytest.mark.parametrize(
    ("change", "extra", "sentence"),
    [
        ({}, {"architecture": "qwen2"}, "its architecture is 'qwen2'; a Llama's alone"),
        ({}, {"expert_count": 8}, "has 8 experts a layer"),
        ({}, {"rope_dimension_count": 4}, r"head_dim \(4\) times the heads"),
        ({"model.layers.0.self_attn.v_proj_x": np.ones(3, np.float32)}, {}, "has blk.0.attn_v_x.weight, which a layer"),
        ({"rope_freqs": np.ones(4, np.float32)}, {}, "has rope_freqs.weight, which"),
        ({"model.norm": None}, {}, "has no tensor output_norm.weight"),
        ({"model.embed_tokens": None}, {}, "has no tensor token_embd.weight"),
    ],
)
def test_what_is_no_llama_is_refused_by_name(tmp_path, change, extra, sentence):
    tensors = {name: tensor for name, tensor in (random_tensors() | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=sentence):
        GgufLlama(write(tmp_path / "model.gguf", tensors, **extra))


def test_what_is_no_gguf_file_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"no model at all, only some words")
    with pytest.raises(ValueError, match="cannot be read as a GGUF file"):
        GgufLlama(tmp_path / "model.gguf")


def test_a_tensor_of_another_shape_is_named(tmp_path):
    tensors = random_tensors() | {"model.layers.1.mlp.up_proj": np.ones((63, 32), np.float32)}
    source = GgufLlama(write(tmp_path / "model.gguf", tensors))
    with pytest.raises(
        ValueError, match=r"blk.1.ffn_up.weight has the shape \[63, 32\] where the model has \[64, 32\]"
    ):
        read_all(source)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_a_tensor_with_a_number_that_is_none_is_named(tmp_path, value, kind):
    tensors = random_tensors()
    tensors["model.layers.1.mlp.up_proj"][5, 2] = value
    with np.errstate(invalid="ignore"):
        source = GgufLlama(write(tmp_path / "model.gguf", tensors, gguf.GGMLQuantizationType[kind]))
    with pytest.raises(ValueError, match=r"model\.gguf: blk\.1\.ffn_up\.weight holds NaN or infinity: copy it again"):
        read_all(source)


@pytest.mark.parametrize(
    ("said", "scaling"),
    [
        ({"scaling.type": "linear", "scaling.factor": 4.0}, ("linear", 4.0)),
        ({"scaling.factor": 4.0}, ("linear", 4.0)),
        ({"scale_linear": 4.0}, ("linear", 4.0)),
        ({"scaling.type": "yarn", "scaling.factor": 4.0}, ("yarn", 4.0)),
        ({"scaling.type": "none", "scaling.factor": 4.0}, None),
        ({"scaling.factor": 0.0}, None),
    ],
)
def test_positions_are_stretched_as_llama_cpp_does(tmp_path, said, scaling):
    """By `llama-model.cpp`: what no type is said of is linear, and the factor had another name once."""

    def say(writer):
        for key, value in said.items():
            (writer.add_string if isinstance(value, str) else writer.add_float32)(f"llama.rope.{key}", value)

    rope = GgufLlama(write(tmp_path / "model.gguf", random_tensors(), say=say)).config.rope
    assert (None if rope is None else (rope.type, rope.factor)) == scaling


@pytest.mark.parametrize(
    ("key", "value"),
    [("llama.rope.scaling.factor", "four"), ("llama.rope.scaling.factor", [4.0]), ("split.count", "one")],
)
def test_a_number_that_is_none_is_refused(tmp_path, key, value):
    def say(writer):
        (writer.add_string if isinstance(value, str) else writer.add_array)(key, value)

    with pytest.raises(ValueError, match=r"model\.gguf"):
        GgufLlama(write(tmp_path / "model.gguf", random_tensors(), say=say))


def test_what_a_scaling_says_of_itself_is_read(tmp_path):
    """As `convert_hf_to_gguf.py` writes it of a Llama."""

    def say(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(19)
        writer.add_rope_scaling_yarn_attn_factor(1.25)
        writer.add_rope_scaling_yarn_beta_fast(16.0)
        writer.add_rope_scaling_yarn_beta_slow(2.0)

    assert GgufLlama(write(tmp_path / "model.gguf", random_tensors(), say=say)).config.rope == RopeScaling(
        type="yarn",
        factor=4.0,
        original_max_position_embeddings=19,
        attention_factor=1.25,
        beta_fast=16.0,
        beta_slow=2.0,
    )
