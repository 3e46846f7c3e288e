"""Small random Arctics with a tokenizer, and what the model itself answers in fp32."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from arctic_model.config import CONFIG_FILE, ArcticConfig
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel
from arctic_model.weights import load_weights, save_model

TEXT = "The operator plans what should be. Each pod is told everything; a group answers as one. Größe, 世界, 🏔."


def byte_tokenizer() -> Tokenizer:
    """Return a byte-level BPE, in which most characters beyond ASCII take several tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT], trainer)
    return made


def random_model(config: ArcticConfig) -> ArcticModel:
    """Return a model with matrices of about unit gain, whatever else building one draws, and norms of ones."""
    model = ArcticModel(config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.requires_grad_(False)


def write_model(folder: Path, tokenizer: Tokenizer, **config: Any) -> None:
    """Write a random Arctic whose weights are large enough that tokens differ; `config` changes the tiny preset."""
    changed = {"moe_layer_frequency": 2, "initializer_range": 0.3, "max_position_embeddings": 256} | config
    with torch.device("meta"):
        model = ArcticModel(ArcticConfig.preset("arctic-tiny").replace(**changed))
    init_weights(model, seed=5)
    save_model(model, folder)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_plain_model(folder: Path) -> Path:
    """Write a model whose sizes every engine takes, with experts in every layer; return the folder."""
    tokenizer = byte_tokenizer()
    sizes: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "moe_layer_frequency": 1,
    }
    write_model(folder, tokenizer, vocab_size=tokenizer.get_vocab_size(), **sizes)
    return folder


@dataclass(frozen=True)
class Greedy:
    """A prompt and its greedy answer, as tokens."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of the answer's tokens."""
    margin: float
    """Least difference, in logits, of the likeliest token and the next over all steps."""


@torch.inference_mode()
def greedy_answers(folder: Path, prompts: Sequence[Sequence[int]], tokens: int) -> list[Greedy]:
    """Let the model go on from prompts of one length by so many tokens: fp32, in this process, without a cache."""
    with torch.device("meta"):
        model = ArcticModel(ArcticConfig.from_folder(folder))
    load_weights(model, folder)
    length = len(prompts[0])
    sequences_BT = torch.tensor(prompts)
    margins_B, logprobs = torch.full((len(prompts),), torch.inf), []
    for _ in range(tokens):
        values_B2, tokens_B2 = torch.topk(model(sequences_BT)[:, -1].log_softmax(-1), 2)
        margins_B = torch.minimum(margins_B, values_B2[:, 0] - values_B2[:, 1])
        logprobs.append(values_B2[:, 0])
        sequences_BT = torch.cat((sequences_BT, tokens_B2[:, :1]), dim=1)
    return [
        Greedy(tuple(sequence[:length]), tuple(sequence[length:]), tuple(chosen), margin)
        for sequence, chosen, margin in zip(
            sequences_BT.tolist(), torch.stack(logprobs, dim=1).tolist(), margins_B.tolist(), strict=True
        )
    ]


def end_with(folder: Path, token: int) -> None:
    """Say in a model folder that a token ends answers."""
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": token}, indent=2))
