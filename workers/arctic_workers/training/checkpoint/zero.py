"""What one rank holds of the training state, as flat pieces of named tensors, partitioned by ZeRO or not.

Under ZeRO-1 and ZeRO-2 reads and writes DeepSpeed's own buffers without a collective: `_hp_mapping` says which range of
a parameter this rank owns (`lp_fragment_address`), where its fp32 master is and, once linked, where its moments are.
For DeepSpeed 0.19.8. Without partitions each rank holds all of its parameters, and answers for its share of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.moe.utils import is_moe_param
from deepspeed.utils import groups
from torch import Tensor

from arctic_workers.training.optimizer import UnpartitionedAdamW

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
            # Where the moments are: fused AdamW counts on the device itself.
            "step": torch.zeros((), dtype=torch.float32, device=partition.device),
            "exp_avg": torch.zeros_like(partition),
            "exp_avg_sq": torch.zeros_like(partition),
        }
    zero._lazy_init_hp_params_optimizer_state()


def local_pieces(engine: Any, names: TensorNames) -> list[Piece]:
    """Return the pieces that this rank answers for; over all ranks they cover all that is trained exactly once."""
    if isinstance(engine.optimizer, UnpartitionedAdamW):
        return [piece for name, p in _trained(engine) for piece in _whole(engine, names[name], p, *_share(p))]
    return [piece for name, p in _trained(engine) for piece in _partition(names[name], p)]


def restored_pieces(engine: Any, names: TensorNames) -> list[Piece]:
    """Return the pieces that a restore has to fill on this rank; `finish_restore` does the rest."""
    if isinstance(engine.optimizer, UnpartitionedAdamW):
        return [piece for name, p in _trained(engine) for piece in _whole(engine, names[name], p, 0, p.numel())]
    return local_pieces(engine, names)


def _trained(engine: Any) -> list[tuple[str, Any]]:
    return [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]


def _partition(tensors: Sequence[str], parameter: Any) -> list[Piece]:
    """Return this rank's part of a parameter, in ZeRO's buffers."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return []
    state = {kind: mapping.get_hp_fragment(None if kind == "master" else kind) for kind in KINDS}
    return _pieces(tensors, mapping.lp_fragment_address.start, parameter.numel(), state)


def _whole(engine: Any, tensors: Sequence[str], parameter: Tensor, start: int, end: int) -> list[Piece]:
    """Return a range of a parameter that is not partitioned."""
    master = engine.optimizer.masters[parameter]
    held = {"master": master, **engine.optimizer.state[master]}
    return _pieces(tensors, start, parameter.numel(), {kind: held[kind].detach().view(-1)[start:end] for kind in KINDS})


def _share(parameter: Any) -> tuple[int, int]:
    """Return the range of a parameter that this rank, of all that hold it, answers for."""
    alike = groups._get_expert_data_parallel_group(parameter.group_name) if is_moe_param(parameter) else None
    rank, ranks = dist.get_rank(alike), dist.get_world_size(alike)
    return parameter.numel() * rank // ranks, parameter.numel() * (rank + 1) // ranks


def _pieces(tensors: Sequence[str], start: int, elements: int, state: Mapping[str, Tensor]) -> list[Piece]:
    """Cut a range of a parameter of so many `elements`, in which `tensors` are stacked, at their borders."""
    end = start + state["master"].numel()
    return [
        Piece(name, first, {kind: held.detach()[low - start : high - start] for kind, held in state.items()})
        for name, first, low, high in split(start, end, elements // len(tensors), tensors)
    ]


def split(start: int, end: int, each: int, names: Sequence[str]) -> Iterator[tuple[str, int, int, int]]:
    """Cut the range [start, end) of tensors of `each` elements, laid one after the other, at their borders.

    Yields (name, start within the tensor, low, high) with [low, high) in the whole range.
    """
    for index in range(start // each, -(-end // each)):
        low, high = max(start, index * each), min(end, (index + 1) * each)
        yield names[index], low - index * each, low, high


def get_step(engine: Any) -> int:
    """Return how many updates Adam has made."""
    if isinstance(engine.optimizer, UnpartitionedAdamW):
        return engine.optimizer.steps
    zero = engine.optimizer
    return int(zero.optimizer.state[zero.single_partition_of_fp32_groups[0]]["step"])


def finish_restore(engine: Any, step: int) -> None:
    """Set Adam's step and bring the model's parameters, on all ranks, to what the masters now hold. Collective."""
    if isinstance(engine.optimizer, UnpartitionedAdamW):
        engine.optimizer.steps = step
        engine.optimizer.write_back()
        return
    zero = engine.optimizer
    for partition in zero.single_partition_of_fp32_groups:
        zero.optimizer.state[partition]["step"].fill_(step)
    zero.update_lp_params()
