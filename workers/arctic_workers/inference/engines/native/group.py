"""Bringing up one rank of a group: meeting the others, loading, agreeing on the cache's size."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from arctic_api.world import InferenceGroup
from arctic_workers.inference.engine import Refused
from arctic_workers.inference.engines.native.cache import PagedCache
from arctic_workers.inference.engines.native.pipeline import agree_on_least
from arctic_workers.inference.engines.native.plan import BLOCK_SIZE, Plan
from arctic_workers.inference.engines.native.runner import Runner, load_slice
from arctic_workers.inference.memory import affordable_blocks, available_cores, available_memory
from arctic_workers.inference.rendezvous import Heartbeats, is_loopback, meet

log = logging.getLogger(__name__)

_NO_LIMIT = timedelta(days=365)


@dataclass(frozen=True)
class Rank:
    """One rank that has loaded."""

    runner: Runner
    blocks: int
    """Blocks of the cache, the same on all ranks."""
    heartbeats: Heartbeats | None
    """None where the rank is alone."""


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
    heartbeats = None
    if plan.ranks > 1:
        log.info("Rank %d of %d waits for the others at %s", rank, plan.ranks, group.hosts[0])
        store = _connect(group.hosts[0], group.ports.rendezvous, rank=rank, ranks=plan.ranks)
        heartbeats = Heartbeats(
            store, address=group.hosts[0], rank=rank, ranks=plan.ranks, on_loss=on_loss, on_stop=on_stop
        )
    part = plan.slices[rank]
    try:
        model = load_slice(plan.folder, plan.config, part, plan.weights, progress)
    except ValueError as error:
        raise Refused(str(error)) from None
    blocks = affordable_blocks(
        available_memory(), fraction=plan.memory_fraction, block_bytes=plan.block_bytes(rank), most=plan.most_blocks
    )
    if plan.ranks > 1:
        blocks = agree_on_least(blocks)
    if not blocks:
        raise RuntimeError("no memory is left for keys and values; give the pods more memory or more pipeline ranks")
    cache = PagedCache(
        part.layers,
        blocks=blocks,
        block_size=BLOCK_SIZE,
        heads=plan.config.num_key_value_heads,
        head_dim=plan.config.head_dim,
        dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[plan.kv_cache],
        window=plan.window,
    )
    log.info("The cache has %d blocks of %d tokens", blocks, BLOCK_SIZE)
    return Rank(Runner(model, cache), blocks, heartbeats)


def _connect(address: str, port: int, *, rank: int, ranks: int) -> Store:
    """Meet the other ranks and set up torch.distributed over gloo. RuntimeError if one has not come in time.

    Addresses on loopback keep all of the group's traffic there.
    """
    if is_loopback(address):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = meet(address, port, rank=rank, ranks=ranks)
    # Waiting for a step has no limit: heartbeats tell whether there is something to wait for.
    group = PrefixStore("group", store)
    distributed.init_process_group("gloo", store=group, rank=rank, world_size=ranks, timeout=_NO_LIMIT)
    return store
