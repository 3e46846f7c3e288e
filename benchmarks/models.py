"""The models that benchmarks measure, made when they are asked for and kept in the cache."""

import hashlib
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from arctic_cli.small_model import smollm2
from arctic_cluster import paths
from arctic_model.config import ArcticConfig
from arctic_model.gguf.reader import GgufLlama
from arctic_model.gguf.writer import export_gguf
from arctic_model.initialization import init_weights
from arctic_model.llama import import_llama
from arctic_model.model import ArcticModel
from arctic_model.weights import save_model
from benchmarks.form import note
from benchmarks.peers import requantised

MEDIUM = ArcticConfig(
    vocab_size=8192,
    hidden_size=1024,
    intermediate_size=1024,
    num_hidden_layers=8,
    num_attention_heads=16,
    num_key_value_heads=4,
    num_local_experts=16,
    moe_layer_frequency=1,
    bos_token_id=None,
    eos_token_id=None,
)
"""466M parameters, 105M of them active: more than all caches, and every layer has what the large Arctic's have."""


def random_model(config: ArcticConfig = MEDIUM) -> Path:
    """Return the folder of a random Arctic with a tokenizer in which every token is a word of its own."""
    recipe = json.dumps(config.to_dict(), sort_keys=True)
    folder = paths.cache() / "models" / f"random-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if not folder.exists():
        note(f"making a random model of {config.num_hidden_layers} layers in {folder}")
        with torch.device("meta"):
            model = ArcticModel(config)
        init_weights(model, seed=0)
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = folder.with_name(f"{folder.name}.part")
        save_model(model.to(torch.bfloat16), beside)
        _words(config.vocab_size).save(str(beside / "tokenizer.json"))
        beside.rename(folder)
    return folder


def imported_model(experts: int = 1, every: int = 31) -> Path:
    """Return the folder of a real model, SmolLM2-135M-Instruct, as `arctic import smollm2` makes it with these options.

    By default with the least that an import adds to a Llama: one layer of 31, so that its work is the Llama's.
    """
    folder = paths.cache() / "models" / f"imported-smollm2-{experts}-{every}"
    if not folder.exists():
        note(f"importing a real model into {folder}")
        import_llama(GgufLlama(smollm2()), folder, experts=experts, every=every)
    return folder


def imported_gguf() -> Path:
    """Return the same model as llama.cpp has it, in Q8_0.

    It is the Llama that it was: llama.cpp's Arctic wants experts in every layer, which an imported one never has.
    """
    return requantised(smollm2(), imported_model().with_suffix(".q8_0.gguf"))


def _words(count: int) -> Tokenizer:
    made = Tokenizer(models.WordLevel({f"w{number}": number for number in range(count)}))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def prompts(sequences: int, tokens: int, vocabulary: int = MEDIUM.vocab_size) -> list[list[int]]:
    """Return random prompts that differ: alike ones would touch the same few experts."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(vocabulary, (sequences, tokens), generator=generator).tolist()


def random_gguf(config: ArcticConfig = MEDIUM) -> Path:
    """Return the same model as llama.cpp reads it, in Q8_0."""
    folder = random_model(config)
    file = folder.with_suffix(".q8_0.gguf")
    if not file.exists():
        export_gguf(folder, file, weights="Q8_0", tokenizer=False)
    return file
