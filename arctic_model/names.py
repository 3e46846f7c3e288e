"""Names and shapes of a checkpoint's tensors, and the adapter between them and the model's parameters. Pure, no torch.

A checkpoint has each expert's matrices under names of their own; the model holds them stacked. All other tensors differ
at most in a word. Layers keep their index in the whole model wherever they run, so names are the same on every rank.
"""

from __future__ import annotations

import re

from arctic_model.config import ArcticConfig

_EXPERT = re.compile(r"(model\.layers\.\d+\.block_sparse_moe\.experts)\.(\d+)\.(w[123])\.weight")
_STACKED = re.compile(r"(model\.layers\.\d+\.block_sparse_moe\.experts)\.(w[123])")


def module_name(hf_name: str) -> tuple[str, int | None]:
    """The parameter that holds a checkpoint's tensor, and the expert within it where the parameter is stacked."""
    if match := _EXPERT.fullmatch(hf_name):
        return f"{match[1]}.{match[3]}", int(match[2])
    return hf_name.replace("block_sparse_moe.gate.", "block_sparse_moe.router.gate."), None


def hf_name(module_name: str, expert: int | None = None) -> str:
    """The checkpoint's name of a parameter, or of one expert in a stacked parameter; inverse of `module_name`.

    Raises ValueError where `expert` is given for a parameter that is not stacked, or left out for one that is.
    """
    match = _STACKED.fullmatch(module_name)
    if (match is None) != (expert is None):
        raise ValueError(f"{module_name} {'needs' if match else 'has no'} expert index")
    if match:
        return f"{match[1]}.{expert}.{match[2]}.weight"
    return module_name.replace("block_sparse_moe.router.gate.", "block_sparse_moe.gate.")


def hf_names(module_name: str, experts: range) -> list[str]:
    """All of a checkpoint's names that a parameter holds, in order; `experts` are those in stacked parameters."""
    if _STACKED.fullmatch(module_name):
        return [hf_name(module_name, expert) for expert in experts]
    return [hf_name(module_name)]


def llama_name(hf_name: str) -> str:
    """What a Llama checkpoint calls a tensor of a layer without experts."""
    for arctic, llama in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
        hf_name = hf_name.replace(f"block_sparse_moe.mlp.{arctic}.", f"mlp.{llama}.")
    return hf_name


def tensor_shapes(config: ArcticConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the whole model under its name in a checkpoint, in the order in which they are written.

    `tie_word_embeddings` makes no difference: here the output matrix is always a tensor of its own.
    """
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_hidden_layers):
        shapes |= layer_shapes(config, layer)
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (config.vocab_size, hidden)}


def layer_shapes(config: ArcticConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of one layer under its name in a checkpoint."""
    prefix = f"model.layers.{layer}"
    hidden, inner = config.hidden_size, config.intermediate_size
    grouped = config.num_key_value_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}.input_layernorm.weight": (hidden,),
        f"{prefix}.self_attn.q_proj.weight": (hidden, hidden),
        f"{prefix}.self_attn.k_proj.weight": (grouped, hidden),
        f"{prefix}.self_attn.v_proj.weight": (grouped, hidden),
        f"{prefix}.self_attn.o_proj.weight": (hidden, hidden),
        f"{prefix}.post_attention_layernorm.weight": (hidden,),
    }
    moe = f"{prefix}.block_sparse_moe"
    if not config.has_experts(layer):
        return shapes | _mlp_shapes(f"{moe}.mlp", hidden, inner)
    shapes[f"{prefix}.residual_layernorm.weight"] = (hidden,)
    shapes |= _mlp_shapes(f"{prefix}.residual_mlp", hidden, hidden)
    shapes[f"{moe}.gate.weight"] = (config.num_local_experts, hidden)
    for expert in range(config.num_local_experts):
        shapes |= _mlp_shapes(f"{moe}.experts.{expert}", hidden, inner)
    return shapes


def _mlp_shapes(prefix: str, hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.w1.weight": (inner, hidden),
        f"{prefix}.w2.weight": (hidden, inner),
        f"{prefix}.w3.weight": (inner, hidden),
    }
