"""Random checkpoints of unusual sizes, and what another implementation, llama.cpp, makes of some of them.

`make parity` compares all of them with llama.cpp itself; two of its answers are kept here for `make test`. vLLM, which
can't take all of these sizes, is compared on sizes of its own.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arctic_model.config import ArcticConfig
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel
from arctic_model.weights import load_weights, save_model

KEPT = Path(__file__).with_name("llama_cpp_answers.json")
KEPT_CASES = ("odd head count, one key-value head", "yarn positions")
COMMON = {"moe_layer_frequency": 1, "max_position_embeddings": 256, "initializer_range": 0.15}
CASES: dict[str, dict[str, Any]] = {
    "odd head count, one key-value head": {
        "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "num_hidden_layers": 3,
        "intermediate_size": 24, "num_local_experts": 5, "num_experts_per_tok": 2, "vocab_size": 131,
    },
    "head of ten, three experts a token, another base": {
        "hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 2,
        "intermediate_size": 13, "num_local_experts": 7, "num_experts_per_tok": 3, "vocab_size": 257,
        "rope_theta": 100000.0, "rms_norm_eps": 1e-3,
    },
    "no grouping, one tiny expert a token": {
        "hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 5, "num_hidden_layers": 4,
        "intermediate_size": 3, "num_local_experts": 2, "num_experts_per_tok": 1, "vocab_size": 97,
    },
    "all experts, wider than hidden": {
        "hidden_size": 32, "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1,
        "intermediate_size": 72, "num_local_experts": 4, "num_experts_per_tok": 4, "vocab_size": 64,
    },
    "the published ratios": {
        "hidden_size": 112, "num_attention_heads": 14, "num_key_value_heads": 2, "num_hidden_layers": 5,
        "intermediate_size": 76, "num_local_experts": 128, "num_experts_per_tok": 2, "vocab_size": 500,
    },
    "linear positions": {
        "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
        "intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 128,
        "rope_scaling": {"type": "linear", "factor": 3.0},
    },
    "yarn positions": {
        "hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 3, "num_hidden_layers": 2,
        "intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 128,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
}  # fmt: skip
PROMPT_TOKENS = 53
GREEDY_TOKENS = 64
ROUNDING = 2e-5
"""Of the greatest logit: sums in another order; 3e-6 is the most that was seen."""


def random_checkpoint(case: str, folder: Path) -> ArcticModel:
    """Write random weights of one of the cases, and read them back."""
    return checkpoint_of(CASES[case], folder)


def checkpoint_of(sizes: dict[str, Any], folder: Path) -> ArcticModel:
    """Write random weights, norms away from 1 so that each one's place matters, and read them back."""
    config = ArcticConfig.from_dict({**ArcticConfig().to_dict(), **COMMON, **sizes})
    model = ArcticModel(config)
    init_weights(model, seed=7)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    save_model(model, folder, max_shard_bytes=200_000)
    with torch.device("meta"):
        loaded = ArcticModel(config)
    load_weights(loaded, folder)
    return loaded


def prompt_of(model: ArcticModel) -> list[int]:
    """Return the tokens that the model is asked to go on from."""
    drawn: list[int] = np.random.default_rng(9).integers(model.config.vocab_size, size=PROMPT_TOKENS).tolist()
    return drawn


def logits_of(model: ArcticModel, prompt: list[int]) -> np.ndarray[Any, Any]:
    """Return the logits [T, V] of a prompt."""
    with torch.inference_mode():
        logits: np.ndarray[Any, Any] = model(torch.tensor([prompt]))[0].numpy()
    return logits


def greedy(model: ArcticModel, prompt: list[int], count: int = GREEDY_TOKENS) -> list[int]:
    """Return the tokens that follow a prompt, each the likeliest."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        tokens.append(int(logits_of(model, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def kept_answers() -> dict[str, dict[str, Any]]:
    """Return llama.cpp's last logits and greedy tokens for the kept cases."""
    content: dict[str, dict[str, Any]] = json.loads(KEPT.read_text())
    return content
