"""A checkpoint in FP8 as compressed-tensors stores it, in vLLM's own quantised layers.

Not the experts: vLLM's CPU build has no kernel for them but on CPUs with AMX.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity import checkpoint_of, logits_of, prompt_of
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from arctic_model import fp8
from arctic_model.model import ArcticModel

SIZES = {
    "hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 2,
    "intermediate_size": 96, "num_local_experts": 5, "num_experts_per_tok": 2, "vocab_size": 131,
    "moe_layer_frequency": 2, "initializer_range": 0.05,
}  # fmt: skip
UNQUANTISED = ("embed_tokens", "lm_head", "norm", "block_sparse_moe.gate", "block_sparse_moe.experts")
EIGHT_BITS = {"num_bits": 8, "type": "float", "symmetric": True}
SCHEME = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "ignore": ["lm_head", "re:.*block_sparse_moe.gate$", "re:.*block_sparse_moe.experts.*"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**EIGHT_BITS, "strategy": "channel", "dynamic": False},
            "input_activations": {**EIGHT_BITS, "strategy": "token", "dynamic": True},
        }
    },
}
ROUNDING = 1e-3
"""Mean difference of logprobs; what is nearly between two e4m3 values may be rounded to either. 3e-7 was seen."""


def compress(checkpoint: Path, folder: Path) -> None:
    """Write a checkpoint anew with the matrices of attention and MLPs in e4m3 with a scale an output channel."""
    folder.mkdir()
    tensors: dict[str, Tensor] = {}
    for file in checkpoint.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            tensors[name] = tensor
            if not any(part in name for part in UNQUANTISED):
                tensors[name], scale = fp8.quantize(tensor)
                tensors[f"{name}_scale"] = scale[:, None]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": SCHEME}))


def round_trip(tensor: Tensor) -> Tensor:
    return fp8.dequantize(*fp8.quantize(tensor))


def quantised(model: ArcticModel) -> ArcticModel:
    """Our model with those matrices rounded to e4m3, and what they are multiplied with, a scale a token."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not any(part in name for part in (*UNQUANTISED, "router")):
            module.weight.data = round_trip(module.weight.data)
            module.register_forward_pre_hook(lambda _, inputs: (round_trip(inputs[0]),))
    return model


@pytest.mark.timeout(1800)
def test_packed_matrices_get_the_scales_of_their_parts(ask: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    model = checkpoint_of(SIZES, tmp_path / "checkpoint")
    compress(tmp_path / "checkpoint", tmp_path / "compressed")
    prompt = prompt_of(model)
    logprobs = ask(tmp_path / "compressed", prompt)["logprobs"]

    def difference(ours: ArcticModel) -> float:
        logits_TV = logits_of(ours, prompt)[:-1]
        return float(np.abs(torch.from_numpy(logits_TV).log_softmax(-1).numpy() - logprobs).mean())

    unquantised, equal = difference(model), difference(quantised(model))
    print(f"logprobs differ by {equal:.1e} on average, those of the unquantised model by {unquantised:.1e}")
    assert equal < ROUNDING < unquantised
