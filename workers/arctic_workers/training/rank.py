"""One rank of a training: makes everything that the trainer works with, and says how it ended. Started by torchrun."""

import logging
import os
import sys
import traceback
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from arctic_api import tracing
from arctic_api.uris import uri_of
from arctic_api.world import WORLD_VARIABLE, ExitCode, Report, TrainingWorld
from arctic_model.config import ArcticConfig
from arctic_model.parallel import plan_training
from arctic_workers.control.lifeline import die_with_parent
from arctic_workers.control.link import LinkClient
from arctic_workers.control.logs import WITHOUT_LOGGER, configure_logs
from arctic_workers.control.traces import begin_traces
from arctic_workers.training.base import find_base
from arctic_workers.training.books import Books
from arctic_workers.training.checkpoint.checkpointer import Checkpointer
from arctic_workers.training.checkpoint.store import CheckpointStore
from arctic_workers.training.communication import waits_counted
from arctic_workers.training.curriculum import Curriculum
from arctic_workers.training.data.accounts import Accounts
from arctic_workers.training.data.batches import TrainingData
from arctic_workers.training.data.mixture import key
from arctic_workers.training.data.prepare import TOKENIZER_FOLDER, prepare
from arctic_workers.training.data.streams import Prepared, open_streams
from arctic_workers.training.data.tokenizer import TextEncoder
from arctic_workers.training.desk import Desk
from arctic_workers.training.engine import (
    STEP_TIMEOUT,
    Ranks,
    build_model,
    from_leader,
    launched_collectives,
    start_engine,
    start_processes,
    trained_shapes,
    wait_for_peers_at_most,
)
from arctic_workers.training.errors import Fenced, Refused, StoreFull, checked
from arctic_workers.training.fp8.model import check_fp8
from arctic_workers.training.hang.pulse import Pulsing
from arctic_workers.training.memory import plan_room
from arctic_workers.training.outcome import PEER_LOST, outcome_folder, write_outcome
from arctic_workers.training.peak import peak_flops
from arctic_workers.training.record import machine, write_record
from arctic_workers.training.start import find_start, fit_vocabulary, kept_config
from arctic_workers.training.traces import Traces
from arctic_workers.training.tracking import check_installed
from arctic_workers.training.trainer import Diverged, Trainer
from arctic_workers.training.workplace import Workplace

log = logging.getLogger(__name__)

PEER_SIGNS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
"""Words of the RuntimeError that gloo raises when another rank is gone."""


def main() -> int:
    """Train, leave a report for the supervisor, and return the exit code."""
    die_with_parent()
    configure_logs(os.environ, WITHOUT_LOGGER)
    world = TrainingWorld.model_validate_json(os.environ[WORLD_VARIABLE])
    if os.environ["RANK"] == "0":
        begin_traces("arctic-training", world, os.environ)
    report = _end_of(world)
    write_outcome(report)
    tracing.end()
    return {"refused": ExitCode.BAD_INPUT, "failed": 1}.get(report.outcome, 0)


def _end_of(world: TrainingWorld) -> Report:
    """Run the training and put its end, whichever it is, into a report."""
    link = LinkClient.from_environment() if os.environ["LOCAL_RANK"] == "0" else None
    try:
        report = train(world, link)
        dist.destroy_process_group()
        return report
    except Refused as error:
        return Report(outcome="refused", reason=error.reason, message=error.message, epoch=world.epoch)
    except Exception as error:
        traceback.print_exc()
        message = f"rank {os.environ['RANK']}: {type(error).__name__}: {error}"
        return Report(outcome="failed", reason=_reason(error), message=message, epoch=world.epoch)
    finally:
        if link is not None:
            link.close()


def _reason(error: Exception) -> str:
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in PEER_SIGNS):
        return PEER_LOST
    return {Fenced: "Fenced", Diverged: "Diverged", StoreFull: "StoreFull"}.get(type(error), "TrainingFailed")


def train(world: TrainingWorld, link: LinkClient | None) -> Report:
    """Prepare what is missing, then train; raises `Refused` for bad input, the same on all ranks."""
    ranks = replace(start_processes(), sequence_parallel=world.spec.parallelism.sequence_parallel)
    log.info("rank %d of %d: all ranks are there", ranks.rank, ranks.world)
    pulsing = Pulsing(outcome_folder(), ranks.rank, launched_collectives, on_cpu=ranks.device.type == "cpu")
    curriculum = checked(lambda: Curriculum.plan(world.spec))
    store = CheckpointStore(Path(world.locate(world.run_folder)), world.epoch)
    kept = None if world.spec.model.from_ is None else from_leader(ranks, lambda: kept_config(store))
    start = find_start(world, kept)
    check_degrees(world, curriculum, start.config)
    if world.spec.precision == "fp8":
        checked(lambda: check_fp8(start.config, ranks.device))
    check_installed(world.spec.tracking)

    def claim_and_prepare() -> list[Prepared]:
        store.claim(world.uid)
        return prepare(world, store)

    sources = from_leader(ranks, claim_and_prepare)
    keep_record(world, store, ranks)
    log.info("rank %d of %d: tokenizer and token streams are there", ranks.rank, ranks.world)
    lora = None if world.spec.model.adapter is None else world.spec.model.adapter.lora
    base = find_base(start.place, lora, ranks)
    wait_for_peers_at_most(STEP_TIMEOUT)
    config = fit_vocabulary(world, start.config, TextEncoder(store.run_folder / TOKENIZER_FOLDER))
    room = plan_room(world.spec, config, ranks)
    spec = world.spec
    model = checked(
        lambda: build_model(
            config, ranks, spec.parallelism.expert_parallel, spec.seed, start.weights, lora, spec.precision
        )
    )
    traces = Traces(world)
    checkpointer = Checkpointer(
        store,
        ranks.rank,
        ranks.world,
        {name: list(shape) for name, shape in trained_shapes(config, lora).items()},
        world.spec.checkpoint.keep,
        lambda step: uri_of(f"{world.run_folder}/checkpoints/{store.name(step)}"),
        traces.checkpoint,
    )
    data = TrainingData(curriculum, open_streams(sources, "train"), world.spec.seed)
    accounts = Accounts(sources, data, curriculum.steps)
    accounts.check(world.spec.data.sources, ranks.leader)
    place = Workplace(
        world=world,
        ranks=ranks,
        config=config,
        curriculum=curriculum,
        data=data,
        room=room,
        held_out=open_streams(sources, "held-out"),
        sources=accounts,
        engine=(engine := start_engine(model, world.spec)),
        base=base,
        store=store,
        checkpointer=checkpointer,
        desk=desk_of(world, curriculum, link, ranks),
        pulsing=pulsing,
        books=Books(world, ranks, config, engine.module, peak_flops(ranks), store.run_folder),
        traces=traces,
    )
    wait_for_peers_at_most(STEP_TIMEOUT)  # the groups of experts are new
    log.info("rank %d of %d: the model is there", ranks.rank, ranks.world)
    # What draws at random draws the same in each attempt that begins anew; others get their state from a checkpoint.
    torch.manual_seed(key(world.spec.seed, ranks.rank))
    # On GPUs a collective only begins where it is called: its time is seen by nobody there.
    with waits_counted(place.books.parts, engine.module.flights) if ranks.device.type == "cpu" else nullcontext():
        try:
            return Trainer(place).run()
        finally:
            store.keep_note(place.books.close)


def desk_of(world: TrainingWorld, curriculum: Curriculum, link: LinkClient | None, ranks: Ranks) -> Desk:
    """Return this rank's desk; the leader's begins with what the manifest said when the attempt was made."""
    return Desk(
        link,
        ranks.leader,
        stages=[stage.name for stage in curriculum.stages],
        pause=world.spec.paused and ranks.leader,
        stop_after=(world.spec.stop_after or "") if ranks.leader else "",
    )


def keep_record(world: TrainingWorld, store: CheckpointStore, ranks: Ranks) -> None:
    """Keep what makes this attempt in the run's folder. Collective."""
    machines: list[Any] | None = [None] * ranks.world if ranks.leader else None
    dist.gather_object(machine(), machines)
    if machines is not None:
        store.keep_note(lambda: write_record(world, store, machines))


def check_degrees(world: TrainingWorld, curriculum: Curriculum, config: ArcticConfig) -> None:
    """Refuse parallel degrees and batches that fit neither each other nor the model."""
    parallelism, batch = world.spec.parallelism, world.spec.batch
    for stage in curriculum.stages:
        checked(
            lambda stage=stage: plan_training(  # type: ignore[misc]
                config,
                nodes=parallelism.nodes,
                processes_per_node=parallelism.processes_per_node,
                expert_parallel=parallelism.expert_parallel,
                sequence_parallel=parallelism.sequence_parallel,
                tokens_per_step=stage.tokens_per_step,
                micro_batch_size=batch.micro_batch_size,
                sequence_length=stage.spec.sequence_length,
            )
        )


if __name__ == "__main__":
    sys.exit(main())
