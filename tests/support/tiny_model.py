"""A small random Arctic with its tokenizer, whose sizes every engine takes."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from arctic_model.config import ArcticConfig
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel
from arctic_model.weights import save_model

TEXT = "The operator plans what should be. Each pod is told everything; a group answers as one."


def save_tiny_model(folder: Path) -> Path:
    """Write it; return the folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    config = ArcticConfig.preset("arctic-tiny").replace(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    with torch.device("meta"):
        model = ArcticModel(config)
    init_weights(model, seed=5)
    save_model(model, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
