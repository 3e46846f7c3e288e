"""Runs a checkpoint in llama.cpp; needs the packages of `environment.py` and nothing of this project.

    python llama_cpp_runner.py FOLDER PROMPT.npy TOKENS OUT.npz

reads the Hugging Face checkpoint in FOLDER by itself, writes it as a GGUF file beside it, and stores `logits` [T, V] of
the prompt's tokens and `greedy`, the TOKENS tokens that follow.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from safetensors import safe_open

SAME = {
    "input_layernorm": "attn_norm",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "residual_layernorm": "ffn_norm",
    "residual_mlp.w1": "ffn_gate",
    "residual_mlp.w2": "ffn_down",
    "residual_mlp.w3": "ffn_up",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "post_attention_layernorm": "ffn_norm_exps",
}
ROTATED = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k"}
STACKED = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}


class Tensors:
    """The tensors of a checkpoint folder, in one file or several."""

    def __init__(self, folder: Path) -> None:
        self._files = {}
        for path in sorted(folder.glob("*.safetensors")):
            handle = safe_open(path, framework="numpy")
            self._files |= dict.fromkeys(handle.keys(), handle)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._files[f"{name}.weight"].get_tensor(f"{name}.weight")


def interleaved(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Reorder the rows of each head from halves (Hugging Face) to neighbouring pairs, which llama.cpp turns here."""
    return weight.reshape(-1, 2, head_dim // 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def gguf_tensors(config: dict[str, Any], tensors: Tensors) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors under llama.cpp's names."""
    yield "token_embd", tensors["model.embed_tokens"]
    yield "output_norm", tensors["model.norm"]
    yield "output", tensors["lm_head"]
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for theirs, name in SAME.items():
            yield f"blk.{layer}.{name}", tensors[f"{prefix}.{theirs}"]
        for theirs, name in ROTATED.items():
            yield f"blk.{layer}.{name}", interleaved(tensors[f"{prefix}.{theirs}"], head_dim)
        for theirs, name in STACKED.items():
            experts = range(config["num_local_experts"])
            stack = [tensors[f"{prefix}.block_sparse_moe.experts.{expert}.{theirs}"] for expert in experts]
            yield f"blk.{layer}.{name}", np.stack(stack)


def write_gguf(config: dict[str, Any], tensors: Tensors, path: Path) -> None:
    """Write the checkpoint as llama.cpp's architecture `arctic`, in F32 and without a tokenizer."""
    writer = gguf.GGUFWriter(path, "arctic")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    if scaling := config["rope_scaling"]:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["type"]))
        writer.add_rope_scaling_factor(scaling["factor"])
        if original := scaling.get("original_max_position_embeddings"):
            writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_tokenizer_model("none")
    for name, tensor in gguf_tensors(config, tensors):
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(tensor, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(folder: Path, prompt: Path, count: int, out: Path) -> None:
    """See the module's docstring."""
    path = folder / "model.gguf"
    write_gguf(json.loads((folder / "config.json").read_text()), Tensors(folder), path)
    tokens = np.load(prompt).tolist()
    model = llama_cpp.Llama(
        str(path),
        n_ctx=len(tokens) + count,
        n_batch=len(tokens),
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        # The cache is in half precision by default, and flash attention rounds to it.
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn=False,
        verbose=False,
    )
    model.eval(tokens)
    logits = model.scores[: len(tokens)].copy()
    greedy = [int(logits[-1].argmax())]
    while len(greedy) < count:
        model.eval(greedy[-1:])
        greedy.append(int(model.scores[model.n_tokens - 1].argmax()))
    np.savez(out, logits=logits, greedy=np.array(greedy))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
