"""What a rank takes of its memory, as planned, and whether it keeps its activations for the backward pass."""

import logging
import os
from dataclasses import dataclass, replace

import torch

from arctic_api.training import ArcticTrainingSpec
from arctic_model.config import ArcticConfig
from arctic_model.planning.devices import DEVICES, Device, cpu
from arctic_model.planning.training import plan_training, shared_by
from arctic_workers.control.memory import available_memory
from arctic_workers.training.engine import Ranks
from arctic_workers.training.extent import training_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Room:
    """The memory of a rank."""

    taken: int
    """Bytes that the run takes at most, in whichever stage."""
    recomputed: frozenset[str]
    """Stages in which activations are computed again instead of kept: there is no room for them."""


def plan_room(spec: ArcticTrainingSpec, config: ArcticConfig, ranks: Ranks) -> Room:
    """Return what this rank will take, and in which stages it computes activations again.

    Ranks need not agree: it adds no communication, and changes no bit. To be asked before the model takes its memory.
    """
    training = training_of(spec, config, on_cpu=ranks.device.type == "cpu")
    plan = plan_training(training, rank_device(ranks))
    names = [stage.name for stage, again in zip(plan.training.stages, plan.recomputed, strict=True) if again]
    if names and ranks.leader:
        log.info("no room for all activations in %s: the backward pass computes them again", ", ".join(names))
    return Room(plan.memory.total(), frozenset(names))


def rank_device(ranks: Ranks) -> Device:
    """Return what this rank has: its GPU, or its share of what is free of its machine."""
    if ranks.device.type == "cpu":
        return shared_by(cpu(memory=available_memory(), bandwidth=None), int(os.environ["LOCAL_WORLD_SIZE"]))
    total = torch.cuda.get_device_properties(ranks.device).total_memory
    return replace(DEVICES["h100"], memory=total)  # whatever it is: its rates are not asked for
