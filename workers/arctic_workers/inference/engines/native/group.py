"""Bringing up one rank of a group: meeting the others, loading, agreeing on the cache's size."""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import torch

from arctic_api.world import InferenceGroup
from arctic_model import fp8
from arctic_model.devices import first_device
from arctic_model.model import ArcticModel
from arctic_model.parallel import WHOLE, LayerSlice, TensorSlice
from arctic_model.planning.devices import GIB
from arctic_model.planning.serving import Serving, activation_bytes
from arctic_workers.control.cores import available_cores
from arctic_workers.control.memory import available_memory
from arctic_workers.inference.engine import Refused
from arctic_workers.inference.engines.native.adapters import load_adapters
from arctic_workers.inference.engines.native.blocks import BLOCK_SIZE
from arctic_workers.inference.engines.native.cache import PagedCache
from arctic_workers.inference.engines.native.kernel.library import multiplies_bf16
from arctic_workers.inference.engines.native.link import Link, connect
from arctic_workers.inference.engines.native.pipeline import agree_on_least
from arctic_workers.inference.engines.native.plan import Plan
from arctic_workers.inference.engines.native.runner import LOGITS_AT_ONCE, Runner, load_slice, prepare
from arctic_workers.inference.engines.native.step import Draw, Part
from arctic_workers.inference.memory import affordable_blocks
from arctic_workers.inference.rendezvous import Heartbeats, meet

if TYPE_CHECKING:
    from arctic_workers.inference.engines.native.cuda.team import Leader

log = logging.getLogger(__name__)

GRAPHS = GIB
"""Bytes that recorded steps, and kernels as they are loaded, may take on a GPU: an allowance, no measurement."""
_WAYS = (Draw(0, 0.0, 1.0, 0, None), Draw(0, 1.0, 1.0, 0, None), Draw(0, 1.0, 0.9, 0, 1, min_p=0.1))
"""To choose tokens: the likeliest, of all, and of some, with what is told of them."""


@dataclass(frozen=True)
class Rank:
    """One rank that has loaded."""

    runner: Runner
    blocks: int
    """Blocks of the cache that sequences have, the same on all ranks; there is one more, which is nobody's."""
    link: Link | None = None
    """Its lines to its neighbours; None where the rank is alone, like `heartbeats`."""
    heartbeats: Heartbeats | None = None


def bring_up(
    plan: Plan,
    group: InferenceGroup,
    rank: int,
    *,
    on_loss: Callable[[str], None],
    on_stop: Callable[[], None],
    progress: Callable[[float], None],
) -> Rank:
    """Return when all ranks have loaded. Raises Refused, PeerLost, or RuntimeError if a rank did not come.

    `on_loss` and `on_stop` are as in `Heartbeats`, `progress` is as in `load_weights`.
    """
    share_cores()
    device = first_device()
    plan.check_device(gpu=device.type != "cpu", multiplies_bf16=multiplies_bf16)
    if device.type == "cpu":
        _check_cores(plan.tensor, torch.get_num_threads())
        team = None
    else:
        team = _lead(plan, group, rank, device, on_loss) if plan.tensor > 1 else None
    try:
        return join(plan, group, rank, device, team, on_loss=on_loss, on_stop=on_stop, progress=progress)
    except BaseException:
        if team is not None:
            team.kill()  # before anybody takes their end for what went wrong
        raise


def join(
    plan: Plan,
    group: InferenceGroup,
    rank: int,
    device: torch.device,
    team: "Leader | None",
    *,
    on_loss: Callable[[str], None],
    on_stop: Callable[[], None],
    progress: Callable[[float], None],
) -> Rank:
    """Load on a device, with the other tensor ranks of the pod where they are processes. Else as `bring_up`."""
    link, heartbeats = _meet(plan, group, rank, on_loss, on_stop)
    part = plan.slices[rank]
    adapters = load_adapters(plan.adapters, plan.config)
    loaded = load_rank(
        plan,
        rank,
        part,
        device,
        WHOLE if team is None else team.share,
        agree=partial(_agree, team, link, rank == 0),
        neighbours=group.hosts.count(group.hosts[rank]),
        progress=progress,
    )
    runner = Runner(
        loaded.model,
        loaded.cache,
        plan.tensor,
        adapters,
        whole_experts=plan.whole_experts,
        team=team,
        rounds=plan.rounds_large_steps or plan.rounds_rows,
    )
    if device.type == "cuda":
        _rehearse(runner, plan, part, nobodys=loaded.blocks)
    return Rank(runner, loaded.blocks, link, heartbeats)


def _agree(team: "Leader | None", link: Link | None, first: bool, value: int) -> int:
    """Return the least of all processes' values, once all of this pod, and then all pods, have said theirs."""
    value = value if team is None else team.least(value)
    value = value if link is None else agree_on_least(link, value, first=first)
    if team is not None:
        team.agree(value)
    return value


def share_cores(processes: int = 1) -> None:
    """Let this process, one of so many alike in a pod, compute with its share of the cores if nobody says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(available_cores() // processes, 1))


def _lead(
    plan: Plan, group: InferenceGroup, rank: int, device: torch.device, on_loss: Callable[[str], None]
) -> "Leader":
    """Start the other tensor ranks, which begin to load. Raises Refused."""
    from arctic_workers.inference.engines.native.cuda.team import Leader  # it imports Triton

    plan.check_processes(torch.cuda.device_count())
    share_cores(plan.tensor)
    return Leader(group, rank, TensorSlice(0, plan.tensor, plan.whole_experts), device, on_loss)


def _meet(
    plan: Plan, group: InferenceGroup, rank: int, on_loss: Callable[[str], None], on_stop: Callable[[], None]
) -> tuple[Link | None, Heartbeats | None]:
    """Find the other pods, where there are some."""
    if plan.ranks == 1:
        return None, None
    address, port = group.hosts[0], group.ports.rendezvous
    log.info("Rank %d of %d waits for the others at %s", rank, plan.ranks, address)
    store = meet(address, port, rank=rank, ranks=plan.ranks)
    heartbeats = Heartbeats(store, address=address, rank=rank, ranks=plan.ranks, on_loss=on_loss, on_stop=on_stop)
    # Waiting for a message has no limit: heartbeats tell whether there is something to wait for.
    return connect(store, address=address, port=port, rank=rank, ranks=plan.ranks), heartbeats


class Loaded(NamedTuple):
    """What a process computes with."""

    model: ArcticModel
    cache: PagedCache
    blocks: int
    """Those of `Rank`."""


def load_rank(
    plan: Plan,
    rank: int,
    part: LayerSlice,
    device: torch.device,
    share: TensorSlice,
    *,
    agree: Callable[[int], int],
    neighbours: int,
    progress: Callable[[float], None],
) -> Loaded:
    """Load what a process of a pod has of some layers, and take the memory for its keys and values.

    `agree` returns the least of what all processes of all pods say, `neighbours` are pods that have the same memory.
    Raises Refused or RuntimeError.
    """
    try:
        model = load_slice(plan.folder, plan.config, part, plan.weights, progress, device, share)
    except ValueError as error:
        raise Refused(str(error)) from None
    prepare(model)
    agree(0)  # now the weights of all ranks on this machine are in its memory
    blocks = agree(
        affordable_blocks(
            _left_memory(plan, part, device, share.ranks) // neighbours,
            fraction=plan.memory_fraction,
            block_bytes=plan.block_bytes(rank, share.ranks),
            most=plan.most_blocks,
        )
    )
    if not blocks:
        raise RuntimeError("no memory is left for keys and values; give the pods more memory or more pipeline ranks")
    cache = PagedCache(
        part.layers,
        blocks=blocks + 1,  # for passes that are nobody's
        block_size=BLOCK_SIZE,
        heads=plan.config.num_key_value_heads // share.ranks,
        head_dim=plan.config.head_dim,
        dtype={"fp8": fp8.DTYPE, "bf16": torch.bfloat16, "fp32": torch.float32}[plan.kv_cache],
        window=plan.window,
        device=device,
    )
    log.info("The cache has %d blocks of %d tokens", blocks, BLOCK_SIZE)
    return Loaded(model, cache, blocks)


def _left_memory(plan: Plan, part: LayerSlice, device: torch.device, processes: int) -> int:
    """Bytes that keys and values may have a share of: on a GPU what steps take is not there for them."""
    if device.type == "cpu":
        return available_memory()
    serving = Serving(
        plan.config,
        compute="fp32",
        tensor=processes,
        token_budget=plan.token_budget,
        max_sequences=plan.max_sequences,
    )
    # What others have of a sum, and the sum, before it is added.
    exchanged = 2 * 4 * plan.token_budget * plan.config.hidden_size if processes > 1 else 0
    torch.cuda.empty_cache()  # loading has left what torch keeps for others
    free, _ = torch.cuda.mem_get_info(device)
    return max(free - activation_bytes(serving, part) - exchanged - GRAPHS, 0)


def _rehearse(runner: Runner, plan: Plan, part: LayerSlice, *, nobodys: int) -> None:
    """Run steps of all sizes in a block that is nobody's.

    Else who asks first waits for kernels to be compiled and steps to be recorded, or finds that memory is short.
    """
    for parts in _steps_of_all_sizes(plan, nobodys):
        rows = (sum(len(each.tokens) for each in parts), plan.config.hidden_size)
        x_TD = runner.run(parts, None if part.embed else torch.zeros(rows, device=runner.device))
        if part.lm_head:
            runner.sample(parts, x_TD)


def _steps_of_all_sizes(plan: Plan, nobodys: int) -> Iterator[list[Part]]:
    """Yield steps of single tokens, of all ways to choose and all lengths, then prompts, up to the largest."""
    sequences = _sizes(min(plan.max_sequences, plan.token_budget))
    for how, count in product(_WAYS, sequences):
        yield [Part(0, (0,), (nobodys,), how)] * count
    for blocks, count in product(_sizes(plan.blocks_of_a_sequence), sequences):
        yield [Part(0, (0,), (nobodys,) * blocks, None)] * count
    longest = plan.blocks_of_a_sequence * BLOCK_SIZE
    for size, adapter in product(_sizes(plan.token_budget), {-1, len(plan.adapters) - 1}):
        tokens = min(size, plan.token_budget)
        first = Part(0, (0,) * min(tokens, longest), (nobodys,) * plan.blocks_of_a_sequence, _WAYS[0], adapter=adapter)
        whole, rest = divmod(tokens, len(first.tokens))
        last = [replace(first, tokens=(0,) * rest, draw=None)] if rest else []
        # A verified proposal, or a prompt that is told of, has several logits of one sequence.
        draws = min(len(first.tokens), LOGITS_AT_ONCE)
        yield [replace(first, draws=draws), *[replace(first, draw=None)] * (whole - 1), *last]


def _sizes(most: int) -> list[int]:
    """Return the powers of two up to a number, and the one that holds it."""
    return [1 << exponent for exponent in range((most - 1).bit_length() + 1)]


def _check_cores(tensor: int, cores: int) -> None:
    """A tensor rank is a share of the cores. Raises Refused."""
    if tensor > cores:
        raise Refused(
            f"parallelism.tensor is {tensor} and this pod has {cores} core{'s' * (cores > 1)}, by its limit or by "
            f"OMP_NUM_THREADS: a tensor rank takes at least one; write at most {cores}, or more cpu in resources"
        )
