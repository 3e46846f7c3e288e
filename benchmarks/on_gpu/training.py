"""A step of training on one card, as our trainer makes it and as one writes it in plain torch."""

import copy
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

from arctic_api.training import ArcticTrainingSpec, Precision
from arctic_api.world import TrainingWorld
from arctic_model import initialization
from arctic_model.config import ArcticConfig
from arctic_model.cost import training_flops_per_token
from arctic_model.planning.training import TrainingPlan, plan_training
from arctic_model.planning.training_time import RankStep
from arctic_workers.control.ports import free_ports
from arctic_workers.training.engine import Ranks, start_processes
from arctic_workers.training.extent import training_of
from arctic_workers.training.memory import rank_device
from benchmarks.on_gpu.measuring import busy_share, kernels_of, seconds
from benchmarks.on_gpu.peer import Peer
from benchmarks.one_rank import RATE, Ours
from benchmarks.training import WORLD

CASE = RankStep(
    ArcticConfig(
        hidden_size=2048,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        num_local_experts=16,
    ),
    micro_batches=1,
    sequences=8,
    length=2048,
)
"""A model of 1.5B parameters, and 16K tokens a step."""
SHOWN = 12
"""Kernels of a step that are named: those that take longest."""


@dataclass(frozen=True)
class Trained:
    """What was measured of steps."""

    seconds: float
    """Of a step."""
    busy: float
    """Share of a step in which the device does something."""
    peak: int
    """Most bytes that tensors had, beside those that were there before."""
    kernels: list[tuple[str, float]]
    """What takes longest, with its microseconds of a step."""

    def flops(self, case: RankStep) -> float:
        """FLOPs a second that the model asks for."""
        return case.tokens * training_flops_per_token(case.config, case.length) / self.seconds


def spec_of(case: RankStep, precision: Precision = "bf16") -> ArcticTrainingSpec:
    """Return the manifest of such steps."""
    world = copy.deepcopy(WORLD)
    stage = {"name": "only", "tokens": case.tokens, "sequenceLength": case.length, "mixture": {"any": 1}}
    world["spec"] |= {  # type: ignore[operator]
        "model": {"config": case.config.to_dict()},
        "precision": precision,
        "batch": {"tokensPerStep": case.tokens, "microBatchSize": case.sequences},
        "curriculum": {"stages": [stage | {"learningRate": {"peak": RATE}}]},
    }
    return TrainingWorld.model_validate(world).spec


def alone() -> Ranks:
    """Make this process the only rank of a world."""
    [port] = free_ports(1)
    told = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in told.items()} | {"MASTER_ADDR": "127.0.0.1"}
    return start_processes()


def ours(case: RankStep, precision: Precision, ranks: Ranks, budget: float) -> Trained:
    """Measure our steps, for about so many seconds once they are warm."""
    [recomputes] = _plan(case, precision, ranks).recomputed

    def make() -> Callable[[], object]:
        made = Ours(case, spec_of(case, precision), ranks)
        made.engine.module.arctic.recompute(recomputes)
        return made.step

    return _measured(make, ranks.device, budget)


def plain(case: RankStep, device: torch.device, budget: float) -> Trained:
    """Measure those of plain torch."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (case.sequences, case.length + 1)
    tokens_BT = torch.randint(case.config.vocab_size, shape, generator=generator, device=device)
    try:
        return _measured(lambda: Peer(case.config, tokens_BT, spec_of(case).optimizer, RATE).step, device, budget)
    finally:
        torch.compiler.reset()  # what was compiled holds the model


def planned_bytes(case: RankStep, precision: Precision, ranks: Ranks) -> int:
    """Return what `arctic plan` says of the memory of such a rank, without what is gone before the first tensor."""
    memory = _plan(case, precision, ranks).memory
    return memory.total() - memory["runtime"]


def _plan(case: RankStep, precision: Precision, ranks: Ranks) -> TrainingPlan:
    training = training_of(spec_of(case, precision), case.config, on_cpu=ranks.device.type == "cpu")
    return plan_training(training, rank_device(ranks))


def release(device: torch.device) -> None:
    """Give the memory back of what nobody has any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


@contextmanager
def drawn_on(device: torch.device) -> Iterator[None]:
    """Have initial weights drawn on a device: a host takes a quarter of a minute for them, each time."""

    def drawn(name: str, shape: tuple[int, ...], seed: int) -> Tensor:  # noqa: ARG001 - as it is without
        return torch.randn(shape, device=device)

    with mock.patch.object(initialization, "normal_matrix", drawn):
        yield


def _measured(make: Callable[[], Callable[[], object]], device: torch.device, budget: float) -> Trained:
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    with drawn_on(device):
        step = make()
    taken = seconds(step, device, budget)
    kernels = kernels_of(step, device)
    by_name: dict[str, float] = {}
    for name, begin, end in kernels:
        by_name[name] = by_name.get(name, 0.0) + end - begin
    longest = sorted(by_name.items(), key=lambda item: -item[1])[:SHOWN]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Trained(taken, busy_share((begin, end) for _, begin, end in kernels), peak - before, longest)
