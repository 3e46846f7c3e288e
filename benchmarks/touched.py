"""The bytes of weights that a step of decoding has to read, from the experts that its tokens really choose."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from arctic_model.config import ArcticConfig
from arctic_model.cost import count_parameters, kv_bytes_per_token
from arctic_model.model import ArcticModel
from arctic_model.moe import MoE, Routing
from arctic_model.weights import load_weights


class Choices:
    """Which experts the tokens of sequences choose, by the model in fp32."""

    def __init__(self, folder: Path) -> None:
        self.config = ArcticConfig.from_folder(folder)
        with torch.device("meta"):
            self._model = ArcticModel(self.config).float()
        load_weights(self._model, folder)
        self._taken: list[Tensor] = []
        for layer in self._model.layers.values():
            if layer.has_experts:
                cast("MoE", layer.block_sparse_moe).router.register_forward_hook(self._take)

    def _take(self, module: nn.Module, inputs: tuple[Tensor, ...], routing: Routing) -> None:  # noqa: ARG002
        self._taken.append(routing.experts_SK)

    @torch.inference_mode()
    def touched(self, sequences: Sequence[Sequence[int]], prompt: int) -> float:
        """Return the experts of a layer that a step touches in the mean, where a step has a token of every sequence.

        The first `prompt` tokens of each are not decoded.
        """
        by_sequence = []
        for sequence in sequences:
            self._taken = []
            self._model(torch.tensor([list(sequence[:-1])]))
            by_sequence.append(torch.stack(self._taken)[:, prompt:])
        chosen_LTBK = torch.stack(by_sequence, dim=2)
        rows = chosen_LTBK.flatten(2).flatten(0, 1)
        return sum(len(row.unique()) for row in rows) / len(rows)


def step_bytes(config: ArcticConfig, *, touched: float, sequences: int, length: float) -> float:
    """Return the bytes that a step reads: weights in FP8 (routers in fp32) and bf16 keys and values.

    `touched` experts a layer; `length` tokens of a sequence are in the cache in the mean.
    """
    count = count_parameters(config)
    embedding = config.vocab_size * config.hidden_size  # one row a token is read of it
    expert = count.experts / config.num_local_experts
    cache = sequences * length * kv_bytes_per_token(config)
    return count.dense - embedding + 4 * count.routers + touched * expert + cache
