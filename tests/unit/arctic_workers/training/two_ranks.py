"""What the tests of a real world look at, computed by its ranks: run once in each of two processes (or in one).

Arguments: the folder to work in, and the names of the parts to run. DeepSpeed takes seconds to import, so the parts of
a world share its processes.
"""

import errno
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import torch
from google.protobuf.json_format import MessageToDict
from torch import Tensor, nn

from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import CheckpointReport, Report, TrainingWorld
from arctic_model.config import ArcticConfig
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel
from arctic_model.moe import Router
from arctic_model.names import hf_names
from arctic_model.planning.training import plan_training
from arctic_rpc.control_pb2 import PAUSED, WorkerState
from arctic_workers.control.link import Command
from arctic_workers.training import engine as engines
from arctic_workers.training import memory
from arctic_workers.training import trainer as trainers
from arctic_workers.training.accounts import COMMUNICATION, TimeParts
from arctic_workers.training.checkpoint import checkpointer as checkpointers
from arctic_workers.training.checkpoint.checkpointer import Checkpointer, Position
from arctic_workers.training.checkpoint.store import CheckpointStore
from arctic_workers.training.checkpoint.zero import local_pieces
from arctic_workers.training.communication import waits_counted
from arctic_workers.training.curriculum import StagePlan
from arctic_workers.training.data.batches import Draw, StageDraws
from arctic_workers.training.data.windows import IGNORED, MicroBatch
from arctic_workers.training.engine import LossModule, Ranks, named_tensors, tensor_names
from arctic_workers.training.errors import Refused, StoreFull
from arctic_workers.training.experts import Exchange, Flights
from arctic_workers.training.experts.grouped import PlainProduct
from arctic_workers.training.extent import training_of
from arctic_workers.training.journal import Journal
from arctic_workers.training.rank import train
from arctic_workers.training.tally import Tally
from arctic_workers.training.trainer import Diverged, Trainer, Wishes

FOLDER = Path(sys.argv[1])
RANK = int(os.environ["RANK"])
WORLD = int(os.environ["WORLD_SIZE"])

CONFIG = ArcticConfig.preset("arctic-tiny").replace(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=3,
    moe_layer_frequency=2,
    num_local_experts=4,
    max_position_embeddings=64,
    router_aux_loss_coef=0.1,
)


trainers.HOLD_SECONDS = 0.02  # pauses here are as many looks for commands, however short each is


NOTHING_SHARED = {"nodes": WORLD, "expertParallel": min(2, WORLD), "zeroStage": 0}


LONG = 32 * 1024 + 128


DIVIDED = {"nodes": WORLD, "expertParallel": min(2, WORLD), "sequenceParallel": WORLD}


def spec_of(**changes: Any) -> ArcticTrainingSpec:
    """A curriculum of two stages with four steps each, on `FOLDER`/corpus; two ranks take one micro-batch a step."""
    stage = {"tokens": 512, "learningRate": {"peak": 3e-3, "warmupTokens": 128}, "sequenceLength": 16}
    content: dict[str, Any] = {
        "model": {"config": CONFIG.to_dict()},
        "tokenizer": {"train": {"vocabSize": 300}},
        "data": {
            "sources": [
                {"name": name, "category": category, "uri": f"file://{FOLDER}/corpus/{name}"}
                for name, category in (("books", "general"), ("programs", "code"))
            ],
            "validation": {"fraction": 0.2},
        },
        "curriculum": {
            "stages": [
                {
                    "name": "first",
                    "mixture": {"books": 0.8, "programs": 0.2},
                    "finalMixture": {"books": 1, "programs": 1},
                }
                | stage,
                {"name": "second", "mixture": {"books": 0.2, "programs": 0.8}, **stage},
            ]
        },
        "batch": {"tokensPerStep": 128, "microBatchSize": 4},
        "parallelism": {"nodes": WORLD, "expertParallel": min(2, WORLD)},
        "checkpoint": {"volume": {"claimName": "c"}, "every": {"steps": 2}, "keep": 2},
        "evaluation": {"suites": ["perplexity"]},
    }
    return ArcticTrainingSpec.model_validate(content | changes)


def world_of(run: str, attempt: int, spec: ArcticTrainingSpec | None = None) -> TrainingWorld:
    return TrainingWorld(
        namespace="default",
        name="t",
        uid="uid",
        first_host="127.0.0.1",
        tls_folder=None,
        spec=spec or spec_of(),
        attempt=attempt,
        epoch=attempt,
        run_folder=str(FOLDER / run),
    )


class ScriptedLink:
    """Stands where the supervisor's link does: gives commands at the polls that a script names, keeps what it hears."""

    def __init__(self, script: dict[int, str | tuple[str, dict[str, Any]]]) -> None:
        self._script = script
        self._polls = 0
        self.replies: list[Any] = []
        self.states: list[WorkerState] = []

    def begin(self) -> None:
        """Nobody waits for it."""

    def poll(self) -> list[Command]:
        self._polls += 1
        asked = self._script.get(self._polls)
        if asked is None:
            return []
        name, arguments = asked if isinstance(asked, tuple) else (asked, {})
        return [Command(name, arguments, self.replies.append)]

    def publish(self, state: WorkerState) -> None:
        self.states.append(state)


def write(name: str, value: Any) -> None:
    (FOLDER / f"{name}.{RANK}.json").write_text(json.dumps(value))


def run(name: str, attempt: int = 1, link: Any = None, spec: ArcticTrainingSpec | None = None) -> Report:
    world = world_of(name, attempt, spec)
    if RANK == 0 and world.spec.tokenizer is not None:
        take_text(FOLDER / name)
    return train(world, link)


def take_text(folder: Path) -> None:
    """Give a new run the text that a whole one has prepared from the same sources."""
    if (FOLDER / "whole" / "export").exists() and not folder.exists():
        for part in ("tokenizer", "data"):
            shutil.copytree(FOLDER / "whole" / part, folder / part)


def one_step() -> None:
    """Make one step with shared-out experts on this rank's batches, and on rank 0 the same in one process with all."""
    one_step_with("step", spec_of(optimizer={"weightDecay": 0.0}))
    one_step_with("whole-step", spec_of(optimizer={"weightDecay": 0.0}, parallelism=NOTHING_SHARED))
    dropping = CONFIG.replace(moe_token_dropping=True, moe_train_capacity_factor=0.75)
    one_step_with("dropping-step", spec_of(optimizer={"weightDecay": 0.0}), dropping)
    loops, PlainProduct.takes = PlainProduct.takes, lambda *_: True  # type: ignore[method-assign]
    one_step_with("grouped-step", spec_of(optimizer={"weightDecay": 0.0}))
    PlainProduct.takes = loops  # type: ignore[method-assign]
    parts, flights = TimeParts(), Flights()
    with waits_counted(parts, flights), flights.blocking("update"):
        engines.dist.all_gather_into_tensor(torch.empty(WORLD), torch.ones(1))
    write("gathered", [len(flights.take()), parts.seconds()[COMMUNICATION] > 0])


def one_step_with(name: str, spec: ArcticTrainingSpec, config: ArcticConfig = CONFIG) -> None:
    ranks: Ranks = engines.start_processes()
    batches = batches_of(2 * ranks.world)
    engine = engines.start_engine(engines.build_model(config, ranks, spec.parallelism.expert_parallel, 1, None), spec)
    engines.set_learning_rate(engine, 1e-2)
    events = record_events(engine.module.arctic)
    tally = Tally(engine.module, [], ranks.device)
    for batch in batches[ranks.rank :: ranks.world]:
        with tally.counting():
            loss, balance = engine(batch)
        engine.backward((loss + balance) / 2)
    [router] = tally.look(1, lambda sums: sums.tolist()).routers
    save_step(name, engine, spec, {"events": events, "dropped": router.dropped})
    if RANK == 0:
        model = ArcticModel(config)
        for part in model.modules():
            if isinstance(part, Router) and config.moe_token_dropping:
                part.capacity = config.capacity
        torch.save(reference_step(model, [(batch,) for batch in batches], spec), FOLDER / f"{name}-reference.pt")


def save_step(name: str, engine: Any, spec: ArcticTrainingSpec, more: dict[str, Any]) -> None:
    """Make the first update of an engine, and keep what gradients it was made from."""
    engine.step()
    torch.save(
        {
            "gradients": gradients_of(engine, spec),
            "weights": named_tensors(engine.module),
            "norm": float(engine.get_global_grad_norm()),
            **more,
        },
        FOLDER / f"{name}.{RANK}.pt",
    )


def divided_step() -> None:
    """Make one step on packed sequences that both ranks share, and on rank 0 the same in one process.

    The ranks compute their activations again, which is not to exchange any heads again.
    """
    draw = torch.Generator().manual_seed(7)
    labels = torch.randint(0, 300, (2, 16), generator=draw)
    labels[0, 5] = labels[1, :11] = IGNORED
    tokens = torch.randint(0, 300, (2, 16), generator=draw)
    batch = MicroBatch(tokens.numpy(), labels.numpy(), [[0, 6], [0, 3, 11]], int((labels != IGNORED).sum()))
    spec = spec_of(optimizer={"weightDecay": 0.0}, parallelism=DIVIDED)
    ranks = replace(engines.start_processes(), sequence_parallel=2)
    engine = engines.start_engine(engines.build_model(CONFIG, ranks, 2, 1, None), spec)
    engines.set_learning_rate(engine, 1e-2)
    engine.module.arctic.recompute(True)
    loss = engines.mean_over_ranks([engines.gradients_of(engine, [batch], batch.targets, ranks)], ranks.device)
    flights = engine.module.arctic.layers[1].block_sparse_moe.company.flights.take()
    heads = [[flight.which.layer, flight.which.backward] for flight in flights if flight.which.kind == "heads"]
    save_step("divided-step", engine, spec, {"loss": loss[0], "heads": heads})
    if RANK == 0:
        reference = reference_step(ArcticModel(CONFIG), [(tokens, labels, batch.starts)], spec)
        torch.save(reference, FOLDER / "divided-reference.pt")


def long_document() -> None:
    """Make one step on a document of 32K tokens that the ranks share, packed with a short one; find its loss on one.

    First in its processes: what a rank takes at most only grows.
    """
    config = CONFIG.replace(
        num_hidden_layers=1, moe_layer_frequency=1, num_attention_heads=2, max_position_embeddings=LONG
    )
    stage = spec_of().curriculum.wire()["stages"][0] | {"sequenceLength": LONG, "tokens": LONG}
    spec = spec_of(
        curriculum={"stages": [stage]}, batch={"tokensPerStep": LONG, "microBatchSize": 1}, parallelism=DIVIDED
    )
    ranks = replace(engines.start_processes(), sequence_parallel=WORLD)
    engine = engines.start_engine(engines.build_model(config, ranks, WORLD, 1, None), spec)
    engine.module.arctic.recompute(True)
    before = resident()
    draw = torch.Generator().manual_seed(7)
    tokens, labels = (torch.randint(0, 300, (1, LONG), generator=draw) for _ in range(2))
    batch = MicroBatch(tokens.numpy(), labels.numpy(), [[0, LONG - 128]], LONG)
    loss = engines.mean_over_ranks([engines.gradients_of(engine, [batch], LONG, ranks)], ranks.device)[0]
    engine.step()
    took = getrusage(RUSAGE_SELF).ru_maxrss * 1024 - before
    plan = plan_training(training_of(spec, config, on_cpu=True), replace(memory.rank_device(ranks), memory=0))
    write("long", {"loss": loss, "took": took, "planned": plan.memory.total() - plan.memory["runtime"]})
    if RANK == 0:
        torch.set_num_threads(2)  # the other rank is done
        model = ArcticModel(config)
        init_weights(model, 1)
        with torch.no_grad():
            alone, _ = LossModule(model)(tokens, labels, batch.starts)
        write("long-alone", float(alone))


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def batches_of(count: int) -> list[Tensor]:
    """Batches for ranks to take."""
    return [torch.randint(0, 300, (3, 17), generator=torch.Generator().manual_seed(i)) for i in range(count)]


def gradients_of(engine: Any, spec: ArcticTrainingSpec) -> dict[str, Tensor]:
    """This rank's pieces of the gradient of the first step, clipped, by tensor and where they begin in it."""
    pieces = local_pieces(engine, tensor_names(engine.module))
    return {f"{p.name}:{p.start}": p.state["exp_avg"] / (1 - spec.optimizer.beta1) for p in pieces}


def reference_step(model: ArcticModel, batches: list[tuple[Any, ...]], spec: ArcticTrainingSpec) -> dict[str, Any]:
    """The same step by one process, without DeepSpeed: loss, gradient, its norm, clipped gradient."""
    init_weights(model, 1)
    module = LossModule(model)
    losses = 0.0
    for batch in batches:
        loss, balance = module(*batch)
        ((loss + balance) / len(batches)).backward()
        losses += float(loss) / len(batches)
    norm = nn.utils.clip_grad_norm_(model.parameters(), spec.optimizer.gradient_clipping)
    gradients: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        names = hf_names(name, range(CONFIG.num_local_experts))
        gradients |= dict(
            zip(names, parameter.grad.unbind() if parameter.dim() == 3 else [parameter.grad], strict=True)
        )
    return {"gradients": gradients, "norm": float(norm), "loss": losses}


def record_events(model: ArcticModel) -> list[str]:
    """Note the order of exchanges, attention and the residual MLP of the layer with experts, forward and backward."""
    events: list[str] = []
    for verb in ("launch", "launch_back", "wait"):
        setattr(Exchange, verb, _noted(getattr(Exchange, verb), verb.split("_")[0], events))
    layer = model.layers[1]
    for name in ("self_attn", "residual_mlp"):
        part = layer.get_submodule(name)
        part.register_forward_pre_hook(lambda *_, name=name: events.append(name))
        part.register_full_backward_hook(lambda *_, name=name: events.append(f"{name} back"))
    return events


def _noted(method: Callable[..., Any], verb: str, events: list[str]) -> Callable[..., Any]:
    def noted(*arguments: Any) -> Any:
        events.append(verb)
        return method(*arguments)

    return noted


def forced_router() -> None:
    """Train a few steps on routers that know two experts, both of even ranks: the others' experts never get a row.

    Every rank's experts of which there is another copy are trained by the tokens of all.
    """
    ranks: Ranks = engines.start_processes()
    batches = batches_of(ranks.world)
    spec = spec_of(optimizer={"weightDecay": 0.0})
    engine = engines.start_engine(engines.build_model(CONFIG, ranks, spec.parallelism.expert_parallel, 1, None), spec)
    force_routers(engine.module.arctic)
    engines.set_learning_rate(engine, 1e-2)
    steps = []
    for _ in range(3):
        loss, balance = engine(batches[ranks.rank])
        engine.backward(loss + balance)
        engine.step()
        gradients = gradients_of(engine, spec) if not steps else {}
        steps.append({"loss": float(loss), "norm": float(engine.get_global_grad_norm()), "gradients": gradients})
    torch.save({"steps": steps, "weights": named_tensors(engine.module)}, FOLDER / f"forced.{RANK}.pt")
    if RANK == 0:
        model = ArcticModel(CONFIG)
        force_routers(model)
        reference = reference_step(model, [(batch,) for batch in batches], spec)
        torch.save(reference, FOLDER / "forced-reference.pt")


def force_routers(model: ArcticModel) -> None:
    """Let every token choose the first two experts."""

    def add(_: nn.Module, __: Any, logits_SE: Tensor) -> Tensor:
        return logits_SE + torch.tensor([60.0, 60.0, 0.0, 0.0])

    for module in model.modules():
        if isinstance(module, Router):
            module.gate.register_forward_hook(add)


def runs() -> None:
    """A run left alone; one that is stopped and goes on; one whose newest checkpoint is damaged meanwhile.

    The stop comes at a step whose checkpoint is due anyway.
    """
    write("whole", run("whole").wire())
    write("stopped", run("stopped", link=ScriptedLink({6: "stop"} if RANK == 1 else {})).wire())
    alone = spec_of(parallelism=DIVIDED | NOTHING_SHARED)
    run("and-back", link=ScriptedLink({2: "stop"} if RANK == 1 else {}), spec=alone)
    torch.distributed.barrier()
    if RANK == 0:
        for name in ("damaged", "other-world", "edited"):
            shutil.copytree(FOLDER / "stopped", FOLDER / name)
        newest = max((FOLDER / "damaged" / "checkpoints").iterdir())
        shard = newest / "shard-00001-of-00002.safetensors"
        content = bytearray(shard.read_bytes())
        content[-100] ^= 1
        shard.write_bytes(content)
    torch.distributed.barrier()
    with newest_unseen():
        write("resumed", run("stopped", attempt=2).wire())
    write("undamaged", run("damaged", attempt=2).wire())
    try:
        run("edited", attempt=2, spec=spec_of(batch={"tokensPerStep": 256, "microBatchSize": 2}))
    except Refused as error:
        write("edited", {"reason": error.reason, "message": error.message})


def rounded() -> None:
    """A run that goes on with products in FP8 from where it came to without."""
    run("rounded", link=ScriptedLink({4: "stop"} if RANK == 0 else {}))
    write("rounded", run("rounded", attempt=2, spec=spec_of(precision="fp8")).wire())


@contextmanager
def newest_unseen() -> Iterator[None]:
    """Let the last rank not see the newest checkpoint, as the cache of a network file system may show a folder."""
    candidates = CheckpointStore.candidates
    if RANK == WORLD - 1:
        CheckpointStore.candidates = lambda self: candidates(self)[1:]  # type: ignore[method-assign]
    try:
        yield
    finally:
        CheckpointStore.candidates = candidates  # type: ignore[method-assign]


def skipped_updates() -> None:
    """One infinite gradient: a run left alone, one that is stopped and goes on. Then a run that has no other."""
    with infinite_gradients({2}):
        write("skipped", run("skipped").wire())
        run("skipped-stopped", link=ScriptedLink({6: "stop"} if RANK == 0 else {}))
        torch.distributed.barrier()
        write("skipped-resumed", run("skipped-stopped", attempt=2).wire())
    with infinite_gradients(set(range(8))):
        try:
            run("diverged")
        except Diverged as error:
            write("diverged", {"message": str(error)})


@contextmanager
def infinite_gradients(steps: set[int]) -> Iterator[None]:
    """Let the backward passes of these steps of a run overflow, on rank 1 alone."""
    train_step = Trainer._train_step

    def overflowing(self: Trainer, stage: StagePlan) -> Wishes:
        if RANK != WORLD - 1 or self.step not in steps:
            return train_step(self, stage)
        parameter = next(iter(self._place.engine.module.parameters()))
        hook = parameter.register_hook(lambda gradient: gradient * float("inf"))
        try:
            return train_step(self, stage)
        finally:
            hook.remove()

    Trainer._train_step = overflowing  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer._train_step = train_step  # type: ignore[method-assign]


@contextmanager
def commits_held_until(event: threading.Event) -> Iterator[None]:
    """Let no checkpoint be committed before `event`."""
    commit = Checkpointer._commit

    def slow(self: Checkpointer, position: Position) -> CheckpointReport:
        assert event.wait(60), "the training waits for the commit"
        return commit(self, position)

    Checkpointer._commit = slow  # type: ignore[method-assign]
    try:
        yield
    finally:
        Checkpointer._commit = commit  # type: ignore[method-assign]


def spec_with_a_checkpoint_at_every_step() -> ArcticTrainingSpec:
    return spec_of(checkpoint=spec_of().checkpoint.wire() | {"every": {"steps": 1}})


def slow_commit() -> None:
    """A checkpoint is due at every step, and the commit of the first takes until rank 0 has made its third step."""
    third_step = threading.Event()
    train_step = Trainer._train_step

    def noted(self: Trainer, stage: StagePlan) -> Wishes:
        wishes = train_step(self, stage)
        if self.step == 3:
            third_step.set()
        return wishes

    Trainer._train_step = noted  # type: ignore[method-assign]
    with commits_held_until(third_step):
        write("slow-commit", run("slow-commit", spec=spec_with_a_checkpoint_at_every_step()).wire())
    Trainer._train_step = train_step  # type: ignore[method-assign]


class PausingLink(ScriptedLink):
    """Pauses a run at its second step; resumes it once that step is committed, or when it plainly will not be."""

    def __init__(self, checkpoint: Path, paused: threading.Event) -> None:
        super().__init__({2: "pause", 5000: "resume"})
        self._checkpoint = checkpoint
        self._paused = paused
        self.committed = False

    def poll(self) -> list[Command]:
        if not self.committed and self._checkpoint.exists():
            self.committed = True
            self._script = {self._polls + 1: "resume"}
        return super().poll()

    def publish(self, state: WorkerState) -> None:
        super().publish(state)
        if state.phase == PAUSED:
            self._paused.set()


def pause_when_put_off() -> None:
    """A run that is paused when the checkpoint of its step is put off, as the one before is committed only then."""
    paused = threading.Event()
    link = PausingLink(FOLDER / "put-off" / "checkpoints" / CheckpointStore.name(2), paused)
    with commits_held_until(paused):
        run("put-off", link=link if RANK == 0 else None, spec=spec_with_a_checkpoint_at_every_step())
    write("put-off", {"committed": link.committed, "replies": link.replies})


@contextmanager
def store_full_at(steps: set[int]) -> Iterator[None]:
    """Let rank 1 have no room for the checkpoints of these steps, in the words of the library that writes them.

    Steps are not faster than what is given up ends, and what is staged takes a while to be cleared away.
    """
    save_file, discard, train_step = checkpointers.save_file, CheckpointStore.discard, Trainer._train_step

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        if RANK == 1 and int(path.parent.name.removeprefix("step-")) in steps:
            path.write_bytes(b"as much as there was room for")
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_file(tensors, path)

    def discard_slowly(self: CheckpointStore) -> None:
        time.sleep(0.1)
        discard(self)

    def no_faster(self: Trainer, stage: StagePlan) -> Wishes:
        checkpointer = self._place.checkpointer
        while checkpointer.busy and checkpointer._given_up.is_set():
            time.sleep(0.005)
        return train_step(self, stage)

    checkpointers.save_file = full
    Trainer._train_step = no_faster  # type: ignore[method-assign]
    CheckpointStore.discard = discard_slowly  # type: ignore[method-assign]
    try:
        yield
    finally:
        checkpointers.save_file = save_file
        Trainer._train_step = train_step  # type: ignore[method-assign]
        CheckpointStore.discard = discard  # type: ignore[method-assign]


@contextmanager
def no_room_for_notes() -> Iterator[None]:
    """Let rank 0 have no room either for what is written for people: a new folder, and the journal's last lines."""
    mkdir, close = Path.mkdir, Journal.close

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def make(self: Path, *arguments: Any, **options: Any) -> None:
        if self.name == "evaluation":
            full()
        mkdir(self, *arguments, **options)

    Path.mkdir = make  # type: ignore[method-assign]
    Journal.close = full  # type: ignore[method-assign]
    try:
        yield
    finally:
        Path.mkdir, Journal.close = mkdir, close  # type: ignore[method-assign]


def full_store() -> None:
    """The store is full for a while in the middle of a stage, when somebody asks for a checkpoint; then at its end."""
    link = ScriptedLink({2: "checkpoint"} if RANK == 0 else {})
    with store_full_at({1, 2, 3}):
        write("full", {"report": run("full", link=link, spec=spec_with_a_checkpoint_at_every_step()).wire()})
    write("full-replies", link.replies)
    with store_full_at({4}), no_room_for_notes():
        try:
            run("full-at-end")
        except StoreFull as error:
            write("full-at-end", {"message": str(error)})
    write("room-again", run("full-at-end", attempt=2).wire())


def commands() -> None:
    """A run that is paused, asked for a checkpoint meanwhile and for what it can't do, resumed, and asked again.

    It has no room for its activations.
    """
    device = memory.rank_device
    memory.rank_device = lambda ranks: replace(device(ranks), memory=1)
    asked = {3: "pause", 4: "checkpoint", 5: "profile", 7: "resume", 9: "checkpoint"}
    link = ScriptedLink(asked if RANK == 0 else {1: "checkpoint"})
    report = run("paused", link=link)
    memory.rank_device = device
    states = [MessageToDict(state) for state in link.states]
    write("paused", {"report": report.wire(), "replies": link.replies, "states": states})


def stopped_early() -> None:
    """A run that begins paused, is told to end with its first stage, and is taken up again without that wish.

    It is judged at every second step, whether that is a stage's last or not.
    """
    judged = {"suites": ["perplexity"], "atStageEnd": False, "every": 2}
    asked = {2: ("stop_after", {"stage": "third"}), 3: ("stop_after", {"stage": "first"}), 4: "resume"}
    link = ScriptedLink(asked if RANK == 0 else {2: ("stop_after", {"stage": "first"})})
    report = run("stopped-early", link=link, spec=spec_of(paused=True, evaluation=judged))
    states = [MessageToDict(state) for state in link.states]
    write("stopped-early", {"report": report.wire(), "replies": link.replies, "states": states})
    ended = run("stopped-early", attempt=2, spec=spec_of(stopAfter="first"))
    write("stopped-early-again", ended.wire())
    write("stopped-early-goes-on", run("stopped-early", attempt=3).wire())


def extended() -> None:
    """A run whose second stage is told, when it is half done, to take as many tokens as it has in other runs."""
    short = spec_of().curriculum.wire()
    short["stages"][1] |= {"tokens": 384, "learningRate": {"peak": 3e-3, "warmupTokens": 128, "schedule": "constant"}}
    full = spec_of().curriculum.wire()
    full["stages"][1] |= {"learningRate": short["stages"][1]["learningRate"]}
    run("extended", link=ScriptedLink({6: "stop"} if RANK == 0 else {}), spec=spec_of(curriculum=short))
    write("extended", run("extended", attempt=2, spec=spec_of(curriculum=full)).wire())
    run("not-extended", spec=spec_of(curriculum=full))


def jumping_spec(policy: str | None = None, every: int = 5) -> ArcticTrainingSpec:
    """One stage of twenty steps with a checkpoint at every fifth, or at each of so many."""
    stage = spec_of().curriculum.wire()["stages"][0] | {"tokens": 20 * 128}
    restart = {"lossSpike": policy} if policy else {}
    checkpoint = spec_of().checkpoint.wire() | {"every": {"steps": every}}
    return spec_of(curriculum={"stages": [stage]}, restart=restart, checkpoint=checkpoint)


@contextmanager
def other_data(places: Callable[[int], int]) -> Iterator[list[int]]:
    """Let a run take other steps' data than its own; gives the list of those that were taken."""
    draws, taken = StageDraws.step, []

    def moved(self: StageDraws, step: int) -> list[Draw]:
        taken.append(places(step))
        return draws(self, taken[-1])

    StageDraws.step = moved  # type: ignore[method-assign]
    try:
        yield taken
    finally:
        StageDraws.step = draws  # type: ignore[method-assign]


@contextmanager
def jumping_loss(step: int) -> Iterator[None]:
    """Let the loss jump on the data of a step, on rank 1 alone."""
    forward = LossModule.forward
    with other_data(lambda step: step) as taken:

        def jumping(self: LossModule, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
            loss, balance = forward(self, *arguments, **options)
            return loss + 10.0 * (RANK == WORLD - 1 and self.training and taken[-1] == step), balance

        LossModule.forward = jumping  # type: ignore[method-assign]
        try:
            yield
        finally:
            LossModule.forward = forward  # type: ignore[method-assign]


def jumps() -> None:
    """A loss that jumps at step 17 under each policy, and runs that should end alike; most go on from the same step.

    One goes back beyond a checkpoint that was given up; the only one of another is given up as the loss jumps.
    """
    run("before-jump", spec=jumping_spec("skip"), link=ScriptedLink({15: "stop"} if RANK == 0 else {}))
    torch.distributed.barrier()
    if RANK == 0:
        for name in ("left-out", "passed-over", "jump-skip", "jump-rollback", "jump-stop"):
            shutil.copytree(FOLDER / "before-jump", FOLDER / name)
    torch.distributed.barrier()
    with infinite_gradients({17}):
        run("left-out", attempt=2, spec=jumping_spec())
    with other_data(lambda step: step + 3 if step >= 15 else step):
        run("passed-over", attempt=2, spec=jumping_spec())
    with jumping_loss(17):
        write("jump-skip", run("jump-skip", attempt=2, spec=jumping_spec("skip")).wire())
        stop_after_going_back = ScriptedLink({1: "checkpoint", 5: "stop"} if RANK == 0 else {})
        with store_full_at({16}):
            run("jump-rollback", attempt=2, spec=jumping_spec("rollback"), link=stop_after_going_back)
        run("jump-rollback", attempt=3, spec=jumping_spec("rollback"))
        only_checkpoint = ScriptedLink({17: "checkpoint"} if RANK == 0 else {})
        with store_full_at({17}):
            run("jump-at-first-checkpoint", spec=jumping_spec("rollback", every=100), link=only_checkpoint)
        try:
            run("jump-stop", attempt=2, spec=jumping_spec("stop"))
        except Refused as error:
            write("jump-stop", {"reason": error.reason, "message": error.message})
        run("jump-stop", attempt=3, spec=jumping_spec("skip"))


def refusals() -> None:
    """Bad input is refused in the same words on all ranks."""
    missing = spec_of().data.model_dump(by_alias=True, exclude_none=True)
    missing["sources"][1]["uri"] = f"file://{FOLDER}/nowhere"
    cases = {
        "missing source": spec_of(data=missing),
        "experts": spec_of(parallelism={"nodes": 2, "expertParallel": 3}),
        "batch": spec_of(batch={"tokensPerStep": 160, "microBatchSize": 2}),
        "vocabulary": spec_of(model={"config": CONFIG.with_vocab_size(260).to_dict()}),
        "positions": spec_of(model={"config": CONFIG.replace(max_position_embeddings=8).to_dict()}),
    }
    said = {}
    for attempt, (name, spec) in enumerate(cases.items(), 1):
        try:
            run("refused", attempt, spec=spec)
        except Refused as error:
            said[name] = f"{error.reason}: {error.message}"
    write("refusals", said)


def adapters() -> None:
    """An adapter on the export of another run: left alone, stopped and resumed, and resumed on other weights."""
    base = FOLDER / "whole" / "export"
    model = {"from": {"uri": f"file://{base}"}, "adapter": {"lora": {"rank": 3, "alpha": 6}}}

    def spec(export: str) -> ArcticTrainingSpec:
        checkpoint = spec_of().checkpoint.wire() | {"export": export}
        return spec_of(model=model, tokenizer=None, checkpoint=checkpoint)

    write("adapter", run("adapter", spec=spec("adapter")).wire())
    run("adapter-stopped", link=ScriptedLink({5: "stop"} if RANK == 0 else {}), spec=spec("huggingface"))
    torch.distributed.barrier()
    write("adapter-merged", run("adapter-stopped", attempt=2, spec=spec("huggingface")).wire())
    torch.distributed.barrier()
    if RANK == 0:
        shutil.copytree(base, FOLDER / "base")
        content = json.loads((base / "config.json").read_text()) | {"router_aux_loss_coef": 0.2}
        (base / "config.json").write_text(json.dumps(content))
    torch.distributed.barrier()
    try:
        run("adapter-stopped", attempt=3, spec=spec("huggingface"))
    except Refused as error:
        write("other-base", {"reason": error.reason, "message": error.message})


def longer() -> None:
    """The export of another run goes on with sequences that are longer than its positions, and shared out at first.

    It is gone when the run goes on from its checkpoint.
    """
    begin = FOLDER / "begin"
    if RANK == 0:
        shutil.copytree(FOLDER / "adapter-stopped" / "export", begin)
    torch.distributed.barrier()
    model = {
        "from": {"uri": f"file://{begin}"},
        "ropeScaling": {"type": "yarn", "factor": 2.5},
    }
    stage = {
        "name": "long",
        "tokens": 3 * 320,
        "mixture": {"books": 1},
        "learningRate": {"peak": 3e-3},
        "sequenceLength": 160,
    }

    def spec(**parallelism: int) -> ArcticTrainingSpec:
        return spec_of(
            model=model,
            tokenizer=None,
            curriculum={"stages": [stage]},
            batch={"tokensPerStep": 320, "microBatchSize": 1},
            parallelism={"nodes": WORLD, "expertParallel": WORLD} | parallelism,
        )

    run("longer", link=ScriptedLink({1: "stop"} if RANK == 0 else {}), spec=spec(sequenceParallel=WORLD))
    if RANK == 0:
        shutil.rmtree(begin)
    write("longer", run("longer", attempt=2, spec=spec()).wire())


def instructed() -> None:
    """The export of another run is fine-tuned on conversations."""
    source = {"name": "chats", "category": "instruction", "uri": f"file://{FOLDER}/corpus/chats.jsonl"}
    stage = spec_of().curriculum.wire()["stages"][1] | {"mixture": {"chats": 1}, "sequenceLength": 64, "tokens": 1024}
    spec = spec_of(
        model={"from": {"uri": f"file://{FOLDER}/adapter-stopped/export"}},
        tokenizer=None,
        data={
            "sources": [source | {"format": "jsonl", "content": "messages", "maxSkipped": "5%"}],
            "validation": {"fraction": 0.2},
        },
        curriculum={"stages": [stage]},
        batch={"tokensPerStep": 256, "microBatchSize": 2},
    )
    link = ScriptedLink({})
    report = run("instructed", link=link, spec=spec)
    states = [MessageToDict(state)["training"] for state in link.states]
    write("instructed", {"report": report.wire(), "states": states, "spec": spec.wire()})


def memory_of_a_rank() -> None:
    """What a rank took at most, and was planned to take, once activations are computed again and once they are kept."""
    config, length, size = ArcticConfig.preset("arctic-tiny").replace(vocab_size=300), 512, 4
    spec = spec_of(
        curriculum={"stages": [spec_of().curriculum.wire()["stages"][0] | {"sequenceLength": length}]},
        batch={"tokensPerStep": size * length, "microBatchSize": size},
    )
    ranks: Ranks = engines.start_processes()
    engine = engines.start_engine(engines.build_model(config, ranks, 1, 1, None), spec)
    tokens = torch.randint(0, 300, (size, length), generator=torch.Generator().manual_seed(7))
    batch = MicroBatch(tokens.numpy(), tokens.numpy(), [[0]] * size, tokens.numel())
    training = training_of(spec, config, on_cpu=True)
    took = {}
    for again in (True, False):  # the peak only grows
        engine.module.arctic.recompute(again)
        engines.gradients_of(engine, [batch], batch.targets, ranks)
        engine.step()
        plan = plan_training(training, replace(memory.rank_device(ranks), memory=0 if again else 2**40))
        took[str(plan.recomputed[0])] = (getrusage(RUSAGE_SELF).ru_maxrss * 1024, plan.memory.total())
    write("memory", took)


def other_world() -> None:
    """A run that two ranks have begun is ended by one; another, that they have begun otherwise, is led on by one."""
    write("other-world", run("other-world", attempt=2).wire())
    write("and-back", run("and-back", attempt=2, link=ScriptedLink({3: "stop"})).wire())


def and_back() -> None:
    """Two ranks end, with partitions, what two have begun without and one has led on."""
    write("and-back", run("and-back", attempt=3).wire())


if __name__ == "__main__":
    parts = (
        *(commands, stopped_early, extended, one_step, divided_step, runs, rounded, refusals),
        *(skipped_updates, slow_commit, pause_when_put_off, full_store, jumps, other_world, and_back, adapters),
        *(forced_router, longer, instructed, memory_of_a_rank, long_document),
    )
    for name in sys.argv[2:]:
        next(part for part in parts if part.__name__ == name)()
    write(f"compiler-{WORLD}", "torch._dynamo" in sys.modules)
