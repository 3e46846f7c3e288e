"""What one rank holds of the training state under DeepSpeed's ZeRO-1 and ZeRO-2, as flat pieces of named tensors.

Reads and writes DeepSpeed's own buffers without a collective: `_hp_mapping` says which range of a parameter this rank
owns (`lp_fragment_address`), where its fp32 master is and, once linked, where its moments are. For DeepSpeed 0.19.8.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KINDS = ("master", "exp_avg", "exp_avg_sq")

TensorNames = Mapping[str, Sequence[str]]
"""For each parameter of the module its Hugging Face names: one, or as many as tensors are stacked in it."""


@dataclass(frozen=True)
class Piece:
    """A range of one named tensor, flattened, on this rank."""

    name: str
    start: int
    state: dict[str, Tensor]
    """For each of KINDS a view of the rank's own buffer: [numel], fp32."""


def prepare_optimizer(engine: Any) -> None:
    """Give every group its moments before the first step, and link all (DeepSpeed links only the first group's)."""
    zero = engine.optimizer
    for partition in zero.single_partition_of_fp32_groups:
        zero.optimizer.state[partition] = {
            "step": torch.zeros((), dtype=torch.float32),
            "exp_avg": torch.zeros_like(partition),
            "exp_avg_sq": torch.zeros_like(partition),
        }
    zero._lazy_init_hp_params_optimizer_state()


def local_pieces(engine: Any, names: TensorNames) -> list[Piece]:
    """Return this rank's pieces; over all ranks they cover every tensor that is trained exactly once."""
    pieces: list[Piece] = []
    for parameter_name, parameter in engine.module.named_parameters():
        mapping = parameter._hp_mapping if parameter.requires_grad else None
        if mapping is None:
            continue
        state = {kind: mapping.get_hp_fragment(None if kind == "master" else kind) for kind in KINDS}
        start = mapping.lp_fragment_address.start
        numel = mapping.lp_fragment_address.numel
        tensors = names[parameter_name]
        for name, first, low, high in split(start, start + numel, parameter.numel() // len(tensors), tensors):
            pieces.append(Piece(name, first, {k: v.detach()[low - start : high - start] for k, v in state.items()}))
    return pieces


def split(start: int, end: int, each: int, names: Sequence[str]) -> Iterator[tuple[str, int, int, int]]:
    """Cut the range [start, end) of tensors of `each` elements, laid one after the other, at their borders.

    Yields (name, start within the tensor, low, high) with [low, high) in the whole range.
    """
    for index in range(start // each, -(-end // each)):
        low, high = max(start, index * each), min(end, (index + 1) * each)
        yield names[index], low - index * each, low, high


def get_step(engine: Any) -> int:
    """Return how many updates Adam has made."""
    zero = engine.optimizer
    return int(zero.optimizer.state[zero.single_partition_of_fp32_groups[0]]["step"])


def finish_restore(engine: Any, step: int) -> None:
    """Set Adam's step and bring the model's parameters, on all ranks, to what the masters now hold. Collective."""
    zero = engine.optimizer
    for partition in zero.single_partition_of_fp32_groups:
        zero.optimizer.state[partition]["step"].fill_(step)
    zero.update_lp_params()
