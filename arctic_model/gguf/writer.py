"""An Arctic as a GGUF file of llama.cpp's architecture `arctic`, with its tokenizer; a tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType

from arctic_model.config import ArcticConfig
from arctic_model.gguf.names import Array, arctic_tensors, is_rotated, to_pairs
from arctic_model.gguf.tokenizer import TOKENIZER_FILE, tokenizer_metadata
from arctic_model.names import tensor_shapes
from arctic_model.weights import Checkpoint, atomic_file

Format = Literal["F32", "F16", "BF16", "Q8_0"]
# What llama.cpp itself never quantises: norms, and the gate whose choices would change.
_KEPT = ("norm.weight", "norm_exps.weight", "ffn_gate_inp.weight")
_HALF = 65504.0
_GREATEST: dict[Format, float] = {
    "F32": torch.finfo(torch.float32).max,
    "F16": _HALF,
    "BF16": torch.finfo(torch.bfloat16).max,
    "Q8_0": 127 * _HALF,  # its scales are F16
}
_SAID_OF_ROPE = {"type", "factor", "original_max_position_embeddings"}


def export_gguf(
    folder: Path,
    path: Path,
    *,
    weights: Format = "F32",
    tokenizer: bool = True,
    progress: Callable[[float], None] = lambda _: None,
) -> None:
    """Write a checkpoint as one file, which appears whole or not at all.

    Norms and gates stay in fp32, and with Q8_0 all matrices do whose rows are no multiple of 32. Without a
    `tokenizer.json`, or without `tokenizer`, the file has none. `progress` is called with the share that is written.
    Raises FileExistsError, CheckpointError, and ValueError where llama.cpp could not run the model.
    """
    with atomic_file(path) as partial:
        _write(folder, partial, weights, tokenizer, progress)


def _write(folder: Path, path: Path, weights: Format, tokenizer: bool, progress: Callable[[float], None]) -> None:
    checkpoint = Checkpoint(folder)
    config = checkpoint.config
    check_exportable(config)
    shapes = tensor_shapes(config)
    checkpoint.check_names(list(shapes), config)
    has_tokenizer = tokenizer and (folder / TOKENIZER_FILE).exists()
    words = tokenizer_metadata(folder, config.vocab_size) if has_tokenizer else {"tokenizer.ggml.model": "none"}
    writer = gguf.GGUFWriter(path, "arctic")
    try:
        _add_metadata(writer, config, words, weights)
        plan = {
            name: (parts, _format(name, shapes[parts[0]], weights)) for name, parts in arctic_tensors(config).items()
        }
        for name, (parts, kind) in plan.items():
            _announce(writer, name, _shape(name, parts, shapes), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, (parts, kind) in enumerate(plan.values(), start=1):
            writer.write_tensor_data(_data(parts, kind, checkpoint, shapes[parts[0]]))
            progress(done / len(plan))
    finally:
        writer.close()


def check_exportable(config: ArcticConfig) -> None:
    """Raise ValueError where llama.cpp's Arctic is another model than this one."""
    if config.moe_layer_frequency != 1:
        raise ValueError(
            f"moe_layer_frequency is {config.moe_layer_frequency}, and llama.cpp's Arctic has experts in every layer: "
            "it cannot run this model"
        )
    if config.sliding_window is not None:
        raise ValueError(
            "sliding_window is set, and llama.cpp's Arctic attends to everything: it would run another model"
        )
    scaling = config.rope
    if scaling is not None and scaling.type == "dynamic":
        raise ValueError("rope_scaling is dynamic, which llama.cpp has not: it would run another model")
    own = scaling.model_dump(exclude=_SAID_OF_ROPE, exclude_defaults=True) if scaling is not None else {}
    if own:
        raise ValueError(f"rope_scaling has {', '.join(own)} of its own, which llama.cpp's Arctic would not read")


def _add_metadata(writer: gguf.GGUFWriter, config: ArcticConfig, words: dict[str, Any], weights: Format) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if scaling := config.rope:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling.type))
        writer.add_rope_scaling_factor(scaling.factor)
        if original := scaling.original_max_position_embeddings:
            writer.add_rope_scaling_orig_ctx_len(original)
    mostly = "ALL_F32" if weights == "F32" else f"MOSTLY_{weights}"
    writer.add_file_type(gguf.LlamaFileType[mostly])
    for key, value in words.items():
        _add(writer, key, value)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _format(name: str, shape: tuple[int, ...], weights: Format) -> Format:
    block = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[weights]][0]
    return "F32" if name.endswith(_KEPT) or shape[-1] % block else weights


def _shape(name: str, parts: list[str], shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    shape = shapes[parts[0]]
    return (len(parts), *shape) if name.endswith("_exps.weight") and len(shape) == 2 else shape


def _announce(writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], kind: Format) -> None:
    dtype = np.dtype(np.float32)
    writer.add_tensor_info(name, shape, dtype, _nbytes(shape, kind), raw_dtype=GGMLQuantizationType[kind])


def _nbytes(shape: tuple[int, ...], kind: Format) -> int:
    block, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return int(np.prod(shape)) // block * size


def _data(parts: list[str], kind: Format, checkpoint: Checkpoint, shape: tuple[int, ...]) -> Array:
    """The bytes of a tensor, part by part into their place: all experts of a layer are in memory once."""
    made = np.empty((len(parts), _nbytes(shape, kind)), np.uint8)
    for place, part in enumerate(parts):
        made[place] = _matrix(part, kind, checkpoint, shape).reshape(-1).view(np.uint8)
    return made


def _matrix(hf_name: str, kind: Format, checkpoint: Checkpoint, shape: tuple[int, ...]) -> Array:
    values: Array = checkpoint.tensor(hf_name, shape).to(torch.float32).numpy()
    greatest = max(values.max(), -values.min())
    if greatest > _GREATEST[kind]:
        raise ValueError(
            f"{checkpoint.folder}: {hf_name} holds {greatest:g}, more than {kind} can ({_GREATEST[kind]:g}): export "
            "it as F32"
        )
    if is_rotated(hf_name):
        values = to_pairs(values, checkpoint.config.head_dim)
    return np.ascontiguousarray(gguf.quants.quantize(values, GGMLQuantizationType[kind]))
