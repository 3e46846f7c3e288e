"""What to change in a training that does not fit. Pure: each piece of advice is a plan that was made, and fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from arctic_model.planning.devices import Device
from arctic_model.planning.training import Training, TrainingPlan, plan_training

MOST_NODES = 4096
"""As many as a manifest takes."""

Fields = dict[str, int]
"""Fields of a manifest's specification, and what to write there."""
_Candidates = list[tuple[Fields, Training]]


@dataclass(frozen=True)
class Change:
    """Fields to write, and the plan that comes of it."""

    fields: Fields
    plan: TrainingPlan


def advise(training: Training, device: Device, allowed: Callable[[Fields], bool] = lambda _: True) -> list[Change]:
    """Return changes to a world that doesn't fit, each enough by itself and the least of its way. None may help."""
    ways = (_smaller_micro_batches(training), _zero_stages(training), *_more_parallel(training), _more_nodes(training))
    found = (_first(way, device, allowed) for way in ways)
    return [change for change in found if change]


def _first(candidates: _Candidates, device: Device, allowed: Callable[[Fields], bool]) -> Change | None:
    for fields, training in candidates:
        try:
            plan = plan_training(training, device)
        except ValueError:  # degrees that can't be
            continue
        if plan.fits and allowed(fields):
            return Change(fields, plan)
    return None


def _smaller_micro_batches(training: Training) -> _Candidates:
    sizes = range(training.micro_batch_size - 1, 0, -1)
    return [({"batch.microBatchSize": size}, replace(training, micro_batch_size=size)) for size in sizes]


def _zero_stages(training: Training) -> _Candidates:
    stages = range(training.zero_stage + 1, 3)
    return [({"parallelism.zeroStage": stage}, replace(training, zero_stage=stage)) for stage in stages]


def _more_parallel(training: Training) -> tuple[_Candidates, _Candidates]:
    """The experts, or each sequence, shared out over more of the same ranks."""
    expert = range(training.expert_parallel + 1, min(training.world, training.config.num_local_experts) + 1)
    sequence = range(training.sequence_parallel + 1, min(training.world, training.config.num_key_value_heads) + 1)
    return (
        [({"parallelism.expertParallel": n}, replace(training, expert_parallel=n)) for n in expert],
        [({"parallelism.sequenceParallel": n}, replace(training, sequence_parallel=n)) for n in sequence],
    )


def _more_nodes(training: Training) -> _Candidates:
    """Twice the nodes, four times, and so on, the experts shared out over as many ranks as there are of either."""
    candidates: _Candidates = []
    nodes = 2 * training.nodes
    while nodes <= MOST_NODES:
        expert_parallel = min(nodes * training.processes_per_node, training.config.num_local_experts)
        fields = {"parallelism.nodes": nodes, "parallelism.expertParallel": expert_parallel}
        candidates.append((fields, replace(training, nodes=nodes, expert_parallel=expert_parallel)))
        nodes *= 2
    return candidates
