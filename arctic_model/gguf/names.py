"""Names of llama.cpp's tensors, and the order of rows that it wants of queries and keys. Pure.

llama.cpp has rotary positions turn neighbouring elements of a head where Hugging Face turns an element and the one half
a head further on, so rows of those two matrices change places. Source: `convert_hf_to_gguf.py` and
`gguf-py/gguf/tensor_mapping.py` of https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from arctic_model.config import ArcticConfig

Array = np.ndarray[Any, np.dtype[Any]]

ROTATED = ("self_attn.q_proj", "self_attn.k_proj")
_TOP = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
_BOTH = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
_DENSE = {
    "post_attention_layernorm": "ffn_norm",
    "block_sparse_moe.mlp.w1": "ffn_gate",
    "block_sparse_moe.mlp.w2": "ffn_down",
    "block_sparse_moe.mlp.w3": "ffn_up",
}
_HYBRID = {
    "residual_layernorm": "ffn_norm",
    "residual_mlp.w1": "ffn_gate",
    "residual_mlp.w2": "ffn_down",
    "residual_mlp.w3": "ffn_up",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "post_attention_layernorm": "ffn_norm_exps",
}
STACKED = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}
"""An expert's matrices, and the tensors that hold those of all experts of a layer."""
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")


def llama_tensor(hf_name: str) -> str:
    """What llama.cpp calls a tensor of a Llama, by its name in an Arctic whose layers are all dense."""
    if match := _LAYER.fullmatch(hf_name):
        return f"blk.{match[1]}.{(_BOTH | _DENSE)[match[2]]}.weight"
    return f"{_TOP[hf_name]}.weight"


def arctic_tensors(config: ArcticConfig) -> dict[str, list[str]]:
    """Every tensor of an Arctic's file, with the tensors of a checkpoint that it is made of: several are stacked."""
    made = {f"{theirs}.weight": [ours] for ours, theirs in _TOP.items()}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        for ours, theirs in (_BOTH | _HYBRID).items():
            made[f"blk.{layer}.{theirs}.weight"] = [f"{prefix}.{ours}.weight"]
        for ours, theirs in STACKED.items():
            experts = range(config.num_local_experts)
            parts = [f"{prefix}.block_sparse_moe.experts.{expert}.{ours}.weight" for expert in experts]
            made[f"blk.{layer}.{theirs}.weight"] = parts
    return made


def is_rotated(hf_name: str) -> bool:
    """Whether rotary positions turn what this matrix makes."""
    return hf_name.endswith(tuple(f"{name}.weight" for name in ROTATED))


def to_pairs(weight: Array, head_dim: int) -> Array:
    """Reorder the rows of each head from halves (Hugging Face) to neighbouring pairs (llama.cpp)."""
    return weight.reshape(-1, 2, head_dim // 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def to_halves(weight: Array, head_dim: int) -> Array:
    """Reorder the rows of each head from neighbouring pairs to halves; inverse of `to_pairs`."""
    return weight.reshape(-1, head_dim // 2, 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)
