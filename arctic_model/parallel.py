"""Parallel degrees checked without a device: pure functions that return a plan, or raise ValueError that says what to
write instead. Every message names the field of a manifest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd, prod
from typing import NamedTuple

from arctic_model.config import ArcticConfig
from arctic_model.names import layer_shapes


@dataclass(frozen=True)
class TrainingPlan:
    """How a world of ranks shares a training step."""

    world: int
    """Ranks in all."""
    expert_parallel: int
    """Consecutive ranks that share one copy of all experts."""
    sequence_parallel: int
    """Consecutive ranks that share each sequence."""
    data_parallel: int
    """Groups of ranks that read different sequences."""
    gradient_accumulation: int
    """Micro-batches of each group in one optimizer step."""
    experts_per_rank: int

    def experts(self, rank: int) -> range:
        """The global indices of the experts that a rank holds."""
        first = rank % self.expert_parallel * self.experts_per_rank
        return range(first, first + self.experts_per_rank)


def plan_training(
    config: ArcticConfig,
    *,
    nodes: int,
    processes_per_node: int,
    expert_parallel: int = 1,
    sequence_parallel: int = 1,
    tokens_per_step: int,
    micro_batch_size: int,
    sequence_length: int,
) -> TrainingPlan:
    """Check a training's degrees against each other and the model.

    `tokens_per_step` are those of the whole world in one optimizer step, `micro_batch_size` sequences.
    """
    world = nodes * processes_per_node
    _positive(
        nodes=nodes,
        processesPerNode=processes_per_node,
        expertParallel=expert_parallel,
        sequenceParallel=sequence_parallel,
        tokensPerStep=tokens_per_step,
        microBatchSize=micro_batch_size,
        sequenceLength=sequence_length,
    )
    ranks = {f"the world of {nodes} x {processes_per_node} ranks": world}
    if expert_parallel > 1 and not config.expert_layers:
        raise ValueError(f"expertParallel is {expert_parallel} and the model has no experts; write 1")
    _divides("expertParallel", expert_parallel, {**ranks, "the model's experts": config.num_local_experts})
    _divides("sequenceParallel", sequence_parallel, {**ranks, **_heads(config), "sequenceLength": sequence_length})
    if sequence_length > config.max_position_embeddings:
        raise ValueError(
            f"sequenceLength is {sequence_length} and the model has {config.max_position_embeddings} positions; write "
            "at most that, or a model with a greater max_position_embeddings"
        )
    data_parallel = world // sequence_parallel
    micro_step = data_parallel * micro_batch_size * sequence_length
    if tokens_per_step % micro_step:
        raise ValueError(
            f"tokensPerStep is {tokens_per_step}, no multiple of {data_parallel} data-parallel groups x microBatchSize "
            f"{micro_batch_size} x sequenceLength {sequence_length}; write {_nearest(tokens_per_step, micro_step)}"
        )
    return TrainingPlan(
        world=world,
        expert_parallel=expert_parallel,
        sequence_parallel=sequence_parallel,
        data_parallel=data_parallel,
        gradient_accumulation=tokens_per_step // micro_step,
        experts_per_rank=config.num_local_experts // expert_parallel,
    )


@dataclass(frozen=True)
class LayerSlice:
    """What one pipeline rank holds of the model: the arguments of `ArcticModel`."""

    layers: range
    embed: bool
    lm_head: bool


_EXPERT = re.compile(r"\.experts\.(\d+)\.w[123]\.")
_BY_ROWS = re.compile(r"\.([qkv]_proj|w[13])\.weight$")
_BY_COLUMNS = re.compile(r"\.(o_proj|w2)\.weight$")


class Cut(NamedTuple):
    """The part of a matrix [rows, columns] that a tensor rank has; a vector has rows alone."""

    rows: range
    columns: range | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the part."""
        return (len(self.rows),) if self.columns is None else (len(self.rows), len(self.columns))


@dataclass(frozen=True)
class TensorSlice:
    """What one tensor rank has of each layer (Shoeybi et al. 2019, arXiv 1909.08053, section 3).

    Of attention some heads: their rows of q, k and v, and the columns of o that meet them. Of a gated MLP, and of each
    expert, some of its inner values: rows of w1 and w3, columns of w2. So what o and w2 give are summands, one a rank.
    Norms, gates, embedding and output matrix are whole on every rank. `plan_inference` checks that a model can be cut.
    """

    rank: int = 0
    ranks: int = 1
    whole_experts: bool = False
    """Whether it has some of the experts whole, rather than a slice of each."""

    def experts(self, count: int) -> range:
        """Which of a layer's experts it has, or has slices of."""
        if not self.whole_experts:
            return range(count)
        first, end = (-(-(self.rank + step) * count // self.ranks) for step in (0, 1))
        return range(first, end)

    def cut(self, hf_name: str, shape: tuple[int, ...]) -> Cut:
        """Return what it has of a tensor that a checkpoint calls so; of experts, those that it has anything of."""
        whole = Cut(range(shape[0]), range(shape[1]) if len(shape) > 1 else None)
        if self.whole_experts and _EXPERT.search(hf_name):
            return whole
        if _BY_ROWS.search(hf_name):
            return whole._replace(rows=self._part(shape[0]))
        if _BY_COLUMNS.search(hf_name):
            return whole._replace(columns=self._part(shape[1]))
        return whole

    def _part(self, size: int) -> range:
        return range(size * self.rank // self.ranks, size * (self.rank + 1) // self.ranks)


WHOLE = TensorSlice()
"""All of each layer."""


@dataclass(frozen=True)
class InferencePlan:
    """How one inference group shares the model."""

    tensor: int
    slices: tuple[LayerSlice, ...]
    """By pipeline rank."""

    @property
    def pipeline(self) -> int:
        """Pipeline ranks."""
        return len(self.slices)


def plan_inference(config: ArcticConfig, *, tensor: int = 1, pipeline: int = 1) -> InferencePlan:
    """Check an inference group's degrees against the model and split its layers over the pipeline by their bytes."""
    _positive(tensor=tensor, pipeline=pipeline)
    _divides("tensor", tensor, {**_heads(config), "the model's intermediate_size": config.intermediate_size})
    if pipeline > config.num_hidden_layers:
        layers = config.num_hidden_layers
        raise ValueError(f"pipeline is {pipeline} and the model has {layers} layers; write at most {layers}")
    kinds = [config.has_experts(layer) for layer in range(config.num_hidden_layers)]
    sizes = {kind: sum(map(prod, layer_shapes(config, kinds.index(kind)).values())) for kind in set(kinds)}
    costs = [sizes[kind] for kind in kinds]
    # A token reads one row of the embedding and all of the output matrix, but both take the same memory.
    ends = config.vocab_size * config.hidden_size
    costs[0] += ends
    costs[-1] += ends
    parts = split_balanced(costs, pipeline)
    return InferencePlan(
        tensor=tensor,
        slices=tuple(
            LayerSlice(part, embed=part.start == 0, lm_head=part.stop == config.num_hidden_layers) for part in parts
        ),
    )


def split_balanced(costs: Sequence[int], parts: int) -> list[range]:
    """Cut a row of costs into `parts` runs, none empty, whose greatest sum is the least possible.

    Among those, the most even (least sum of squares). `parts` is at most the number of costs.
    """
    sums = [0]
    for cost in costs:
        sums.append(sums[-1] + cost)
    greatest = _best_cuts(sums, parts, lambda rest, run: max(rest, run))[0]
    unbounded = sums[-1] ** 2 + 1
    _, cuts = _best_cuts(sums, parts, lambda rest, run: rest + (run * run if run <= greatest else unbounded))
    return [range(start, stop) for start, stop in pairwise(cuts)]


def _best_cuts(sums: Sequence[int], parts: int, add: Callable[[int, int], int]) -> tuple[int, list[int]]:
    """The cheapest way to cut a row, by its running sums, where `add` adds one run to the cost of those before it."""
    count = len(sums) - 1
    best: dict[int, tuple[int, list[int]]] = {0: (0, [0])}
    for part in range(1, parts + 1):
        stops = range(part, count - (parts - part) + 1)
        best = {
            stop: min(
                (add(cost, sums[stop] - sums[start]), [*cuts, stop])
                for start, (cost, cuts) in best.items()
                if start < stop
            )
            for stop in stops
        }
    return best[count]


def _positive(**values: int) -> None:
    for field, value in values.items():
        if value < 1:
            raise ValueError(f"{field} is {value}; write at least 1")


def _heads(config: ArcticConfig) -> dict[str, int]:
    return {
        "the model's attention heads": config.num_attention_heads,
        "the model's key-value heads": config.num_key_value_heads,
    }


def _divides(field: str, degree: int, sizes: dict[str, int]) -> None:
    """Raise where a degree does not divide every size; the sentence names the degrees that do."""
    if faults := [f"{what} ({size})" for what, size in sizes.items() if size % degree]:
        common = gcd(*sizes.values())
        fitting = [str(number) for number in range(1, common + 1) if common % number == 0]
        words = f"one of {', '.join(fitting)}" if len(fitting) > 1 else "1"
        raise ValueError(f"{field} is {degree} and does not divide {' or '.join(faults)}; write {words}")


def _nearest(value: int, step: int) -> int:
    return max(round(value / step), 1) * step
