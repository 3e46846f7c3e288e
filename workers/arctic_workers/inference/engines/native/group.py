"""Bringing up one rank of a group: meeting the others, loading, agreeing on the cache's size."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from arctic_api.world import InferenceGroup
from arctic_model import fp8
from arctic_workers.control.cores import available_cores
from arctic_workers.control.memory import available_memory
from arctic_workers.inference.engine import Refused
from arctic_workers.inference.engines.native.adapters import load_adapters
from arctic_workers.inference.engines.native.blocks import BLOCK_SIZE
from arctic_workers.inference.engines.native.cache import PagedCache
from arctic_workers.inference.engines.native.link import Link, connect
from arctic_workers.inference.engines.native.pipeline import agree_on_least
from arctic_workers.inference.engines.native.plan import Plan
from arctic_workers.inference.engines.native.runner import Runner, load_slice, prepare
from arctic_workers.inference.memory import affordable_blocks
from arctic_workers.inference.rendezvous import Heartbeats, meet

log = logging.getLogger(__name__)


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
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cores())
    _check_cores(plan.tensor, torch.get_num_threads())
    link, heartbeats = None, None
    if plan.ranks > 1:
        address, port = group.hosts[0], group.ports.rendezvous
        log.info("Rank %d of %d waits for the others at %s", rank, plan.ranks, address)
        store = meet(address, port, rank=rank, ranks=plan.ranks)
        heartbeats = Heartbeats(store, address=address, rank=rank, ranks=plan.ranks, on_loss=on_loss, on_stop=on_stop)
        # Waiting for a message has no limit: heartbeats tell whether there is something to wait for.
        link = connect(store, address=address, port=port, rank=rank, ranks=plan.ranks)
    part = plan.slices[rank]
    adapters = load_adapters(plan.adapters, plan.config)
    try:
        model = load_slice(plan.folder, plan.config, part, plan.weights, progress)
    except ValueError as error:
        raise Refused(str(error)) from None
    prepare(model)
    if link is not None:
        agree_on_least(link, 0, first=rank == 0)  # now the weights of all ranks on this machine are in its memory
    blocks = affordable_blocks(
        available_memory() // group.hosts.count(group.hosts[rank]),
        fraction=plan.memory_fraction,
        block_bytes=plan.block_bytes(rank),
        most=plan.most_blocks,
    )
    if link is not None:
        blocks = agree_on_least(link, blocks, first=rank == 0)
    if not blocks:
        raise RuntimeError("no memory is left for keys and values; give the pods more memory or more pipeline ranks")
    cache = PagedCache(
        part.layers,
        blocks=blocks + 1,  # for passes that are nobody's
        block_size=BLOCK_SIZE,
        heads=plan.config.num_key_value_heads,
        head_dim=plan.config.head_dim,
        dtype={"fp8": fp8.DTYPE, "bf16": torch.bfloat16, "fp32": torch.float32}[plan.kv_cache],
        window=plan.window,
    )
    log.info("The cache has %d blocks of %d tokens", blocks, BLOCK_SIZE)
    runner = Runner(model, cache, plan.tensor, adapters, whole_experts=plan.whole_experts)
    return Rank(runner, blocks, link, heartbeats)


def _check_cores(tensor: int, cores: int) -> None:
    """A tensor rank is a share of the cores. Raises Refused."""
    if tensor > cores:
        raise Refused(
            f"parallelism.tensor is {tensor} and this pod has {cores} core{'s' * (cores > 1)}, by its limit or by "
            f"OMP_NUM_THREADS: a tensor rank takes at least one; write at most {cores}, or more cpu in resources"
        )
