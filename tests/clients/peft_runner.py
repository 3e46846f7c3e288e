"""Run in peft's environment: `peft_runner.py ARCTIC ADAPTER LLAMA OUT`, the last a folder for what is written.

With our model's code under it, peft loads ADAPTER and makes an adapter of its own (OUT/arctic). It makes another one on
a Llama of transformers' (OUT/llama), whose weights it writes into LLAMA. The logits of each are in OUT/logits.npz.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2]))
from arctic_model.config import ArcticConfig
from arctic_model.model import ArcticModel
from arctic_model.weights import load_weights

TOKENS = torch.arange(14).view(2, 7)


class Config(dict):
    """A model's configuration as peft asks for it: a mapping, or an object."""

    def __getattr__(self, name):
        """Return a value."""
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def base(folder: Path) -> ArcticModel:
    """Read our model, with what peft looks for in one that writes text."""
    with torch.device("meta"):
        model = ArcticModel(ArcticConfig.from_folder(folder))
    load_weights(model, folder)
    model.prepare_inputs_for_generation = lambda *_, **__: {}
    model.config = Config(model.config.to_dict())
    return model


def main() -> None:
    """Do all of it."""
    arctic, adapter, llama, out = map(Path, sys.argv[1:])
    torch.manual_seed(3)
    with torch.no_grad():
        given = PeftModel.from_pretrained(base(arctic), adapter)
        logits = {"given": given.base_model.model(TOKENS)}

        mixed = LoraConfig(
            r=3,
            lora_alpha=5,
            target_modules=["q_proj", "v_proj", "w2"],
            rank_pattern={"q_proj": 2},
            alpha_pattern={"layers.1.self_attn.v_proj": 9},
            use_rslora=True,
            init_lora_weights=False,
            exclude_modules=r".*experts.*",
        )
        made = get_peft_model(base(arctic), mixed)
        made.save_pretrained(out / "arctic")
        logits["made"] = made.base_model.model(TOKENS)

        config = LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
        )
        plain = LlamaForCausalLM(config)
        plain.save_pretrained(llama)
        everywhere = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
        tuned = get_peft_model(plain, everywhere)
        tuned.save_pretrained(out / "llama")
        logits["llama"] = tuned(TOKENS).logits
    np.savez(out / "logits.npz", **{name: value.numpy() for name, value in logits.items()})


if __name__ == "__main__":
    main()
