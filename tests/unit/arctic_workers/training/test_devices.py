"""The work of a rank with its tensors on a GPU, without one: `FakeTensorMode` knows shapes, dtypes and devices alone.

It raises where tensors of two devices meet and where the host reads what a device computes. Only the backward pass
needs a device.
"""

import errno
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed.comm
import numpy as np
import pytest
import torch
import torch.distributed as dist
from api_cases import TRAINING
from tensorboardX.event_file_writer import EventsWriter
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from arctic_api.training import ArcticTrainingSpec, Lora
from arctic_api.world import TrainingWorld
from arctic_model import devices
from arctic_model.config import ArcticConfig
from arctic_model.devices import Wait
from arctic_workers.training.books import Books, Measures
from arctic_workers.training.checkpoint import checkpointer
from arctic_workers.training.checkpoint.zero import KINDS, finish_restore, prepare_optimizer
from arctic_workers.training.curriculum import Curriculum
from arctic_workers.training.data.windows import Stream
from arctic_workers.training.engine import (
    LossModule,
    Ranks,
    fill_model,
    gradient_norm,
    mean_over_ranks,
    partitions,
    shape_model,
)
from arctic_workers.training.experts.layer import CHUNKS, ParallelExperts
from arctic_workers.training.held_out import HeldOut
from arctic_workers.training.journal import JOURNAL, read_lines, that_hold
from arctic_workers.training.optimizer import UnpartitionedAdamW
from arctic_workers.training.sequence import share_sequences

GPU = torch.device("cuda", 0)
RANKS = Ranks(0, 1, 0, GPU)
SEQUENCES, LENGTH = 2, 8
CONFIG = ArcticConfig.preset("arctic-tiny").replace(
    vocab_size=64, num_hidden_layers=2, moe_layer_frequency=2, num_local_experts=4, hidden_size=32, intermediate_size=16
)
EXPERTS = CONFIG.num_local_experts
ROWS = SEQUENCES * LENGTH * CONFIG.num_experts_per_tok
WORLD = TrainingWorld(
    namespace="default",
    name="tiny",
    uid="uid",
    first_host="127.0.0.1",
    tls_folder=None,
    spec=ArcticTrainingSpec.model_validate(TRAINING["spec"]),
    attempt=1,
    epoch=1,
    run_folder="/run",
)
KNOWN = {
    Wait.POSITIONS: [LENGTH - 1],
    Wait.EXPERT_ROWS: [ROWS // EXPERTS] * EXPERTS,
    Wait.EXCHANGED_ROWS: [ROWS // EXPERTS // CHUNKS] * (2 * CHUNKS * EXPERTS),
    Wait.STEP: [1.0],
    Wait.LOOK: [6.0, 2.0] + [1.0] * EXPERTS + [2.0, EXPERTS / CONFIG.num_experts_per_tok, 0.0],
    Wait.HELD_OUT: [6.0, 2.0],
}
TWO_RANKS = pytest.mark.parametrize("waited", [2], indirect=True)


@pytest.fixture(autouse=True)
def waited(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[list[Wait]]:
    """A world of one, or of its parameter, and values for all that a rank may wait for; what it waited for."""
    done: list[Wait] = []

    def on_host(_: torch.Tensor, wait: Wait) -> list[float]:
        done.append(wait)
        return KNOWN[wait]

    monkeypatch.setattr(devices, "on_host", on_host)
    dist.init_process_group("fake", rank=0, world_size=getattr(request, "param", 1), store=FakeStore())
    monkeypatch.setattr(deepspeed.comm.comm, "cdb", dist)  # DeepSpeed hands its collectives on to torch's
    yield done
    dist.destroy_process_group()


@pytest.fixture
def module() -> LossModule:
    return LossModule(shape_model(CONFIG, RANKS, 1))


def test_the_model_and_its_loss_stay_on_the_device(module: LossModule, waited: list[Wait]) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        fill_model(module.arctic, RANKS, 1, 0, None)
        assert {(p.device, p.dtype) for p in module.parameters()} == {(GPU, torch.bfloat16)}
        loss, balance = module(torch.zeros(SEQUENCES, LENGTH + 1, dtype=torch.int64, device=GPU))
        assert loss.device == balance.device == GPU
        assert waited == []
        with pytest.raises(DataDependentOutputException):
            float(loss)


def test_positions_that_dynamic_scaling_asks_for_are_a_wait_that_is_listed(waited: list[Wait]) -> None:
    module = LossModule(shape_model(CONFIG.replace(rope_scaling={"type": "dynamic", "factor": 2.0}), RANKS, 1))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fill_model(module.arctic, RANKS, 1, 0, None)
        module(torch.zeros(SEQUENCES, LENGTH + 1, dtype=torch.int64, device=GPU))
    assert waited == [Wait.POSITIONS]


def test_an_adapter_stays_on_the_device(waited: list[Wait]) -> None:
    lora = Lora(rank=2, alpha=4)
    module = LossModule(shape_model(CONFIG, RANKS, 1, lora))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fill_model(module.arctic, RANKS, 1, 0, None, lora)
        trained = {name.split(".")[-2] for name, weight in module.named_parameters() if weight.requires_grad}
        assert trained == {"lora_A", "lora_B"}
        assert {weight.device for weight in module.parameters()} == {GPU}
        loss, _ = module(torch.zeros(SEQUENCES, LENGTH + 1, dtype=torch.int64, device=GPU))
        assert loss.device == GPU
    assert waited == []


@TWO_RANKS
def test_rows_travel_to_experts_of_another_rank_from_device_to_device(waited: list[Wait]) -> None:
    ranks = replace(RANKS, world=2)
    module = LossModule(shape_model(CONFIG, ranks, 2))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fill_model(module.arctic, ranks, 2, 0, None)
        sent = join_experts(module)
        loss, balance = module(torch.zeros(SEQUENCES, LENGTH + 1, dtype=torch.int64, device=GPU))
        assert loss.device == balance.device == GPU
        assert module.arctic.config.num_local_experts == 2 * len(next(experts_of(module)).held)
    assert waited == [Wait.EXCHANGED_ROWS]
    assert sent == ["counts", *["dispatch"] * CHUNKS, *["combine"] * CHUNKS]


@TWO_RANKS
def test_heads_of_shared_sequences_travel_from_device_to_device(waited: list[Wait]) -> None:
    ranks = replace(RANKS, world=2, sequence_parallel=2)
    model = shape_model(CONFIG, ranks, 2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fill_model(model, ranks, 2, 0, None)
        company = next(experts_of(model)).company
        company.sequences = share_sequences(0, 2, company.flights)
        module = LossModule(model, company.sequences)
        sent = join_experts(module)
        loss, _ = module(torch.zeros(SEQUENCES, 2 * LENGTH + 1, dtype=torch.int64, device=GPU))
        assert loss.device == GPU
    assert waited == [Wait.EXCHANGED_ROWS]
    assert sent.count("heads") == 2 * CONFIG.num_hidden_layers


def experts_of(module: torch.nn.Module) -> Iterator[ParallelExperts]:
    """Each layer's experts."""
    return (part for part in module.modules() if isinstance(part, ParallelExperts))


def join_experts(module: LossModule) -> list[str]:
    """Let all ranks share out the experts, as DeepSpeed does; returns the kinds of what is exchanged from now on."""
    sent: list[str] = []
    for layer in experts_of(module):
        layer.ep_group = dist.group.WORLD
        launched = layer.company.flights.launched

        def noted(of: int, kind: str, *, backward: bool, launched: Any = launched) -> Any:
            sent.append(kind)
            return launched(of, kind, backward=backward)

        layer.company.flights.launched = noted  # type: ignore[method-assign]
    return sent


def test_the_books_wait_for_the_device_only_when_they_are_looked_at(
    module: LossModule, waited: list[Wait], tmp_path: Path
) -> None:
    [stage] = Curriculum.plan(WORLD.spec).stages
    with FakeTensorMode(allow_non_fake_inputs=True):
        fill_model(module.arctic, RANKS, 1, 0, None)
        with closing(Books(WORLD, RANKS, CONFIG, module, 0.0, tmp_path)) as books:
            books.begin(0, lambda write: write())
            books.tally.expect([["books"] * SEQUENCES])
            with books.overlap.step(), books.tally.counting():
                module(torch.zeros(SEQUENCES, LENGTH + 1, dtype=torch.int64, device=GPU))
            assert waited == []
            books.look(stage, 1, 16, Measures(loss=3.0), {"books": 0.5}, lambda write: write())
    assert waited == [Wait.LOOK]
    [line] = that_hold(read_lines(tmp_path / JOURNAL))
    assert line["loss_by_source"] == {"books": 3.0}
    assert line["routers"][0]["load"] == [1 / EXPERTS] * EXPERTS


def test_books_that_can_not_be_begun_anew_go_on_as_they_were(
    module: LossModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [stage] = Curriculum.plan(WORLD.spec).stages

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with FakeTensorMode(), closing(Books(WORLD, RANKS, CONFIG, module, 0.0, tmp_path)) as books:
        books.begin(0, lambda write: write())
        with monkeypatch.context() as patch:
            patch.setattr(EventsWriter, "__init__", full)
            with pytest.raises(OSError, match="No space left"):
                books.begin(5, lambda write: write())
        books.look(stage, 6, 16, Measures(loss=3.0), {}, lambda write: write())
    assert [line["step"] for line in read_lines(tmp_path / JOURNAL)] == [6]


def test_held_out_text_is_judged_on_the_device(module: LossModule, waited: list[Wait], tmp_path: Path) -> None:
    path = tmp_path / "held-out.bin"
    np.arange(3 * (LENGTH + 1), dtype=np.uint16).tofile(path)
    stream = Stream("books", "general", np.memmap(path, np.uint16, "r"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fill_model(module.arctic, RANKS, 1, 0, None)
        held_out = HeldOut(module, RANKS, {"books": stream}, LENGTH, 1024, SEQUENCES)
        assert held_out.held_out_loss("general") == 3.0
    assert waited[-1] == Wait.HELD_OUT


def test_a_step_of_the_optimizer_and_its_checkpoint_stay_on_the_device() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        master = torch.zeros(10, device=GPU, requires_grad=True)
        master.grad = torch.zeros_like(master)
        adam = torch.optim.AdamW([master], lr=0.0, fused=True)
        zero = SimpleNamespace(
            optimizer=adam,
            single_partition_of_fp32_groups=[master],
            _lazy_init_hp_params_optimizer_state=lambda: None,
            update_lp_params=lambda: None,
        )
        engine = SimpleNamespace(optimizer=zero, get_global_grad_norm=lambda: torch.zeros((), device=GPU))
        prepare_optimizer(engine)
        # FakeTensorMode lets a `step` on the host pass, which the kernel on a GPU refuses.
        assert {value.device for value in adam.state[master].values()} == {GPU}
        adam.step()
        state = {"master": master.detach()} | {kind: adam.state[master][kind] for kind in KINDS[1:]}
        for tensor in state.values():
            stored = checkpointer._Stored(0, 10, lambda low, high: torch.zeros(high - low))
            checkpointer.fill(tensor, 0, [stored], "w")
        finish_restore(engine, 3)
        assert gradient_norm(engine) == 1.0


def test_a_step_without_partitions_stays_on_the_device() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        weight = torch.nn.Parameter(torch.zeros(10, device=GPU, dtype=torch.bfloat16))
        weight.grad = torch.zeros_like(weight)
        whole = UnpartitionedAdamW([{"params": [weight]}], (0.9, 0.95), 1e-8, 1.0)
        whole.step()
        master = whole.masters[weight]
        assert {value.device for value in (master, *whole.state[master].values())} == {GPU}
        assert master.dtype == torch.float32


@pytest.mark.parametrize(("waited", "zero"), [(1, False), (2, True)], indirect=["waited"])
def test_zero_partitions_where_there_is_somebody_to_share_with(zero: bool) -> None:
    assert partitions(WORLD.spec) == zero


def test_a_rank_sends_the_frequencies_of_positions_once(module: LossModule) -> None:
    rotary = module.arctic.rotary
    with FakeTensorMode(allow_non_fake_inputs=True):
        positions = torch.zeros(SEQUENCES, LENGTH, dtype=torch.int64, device=GPU)
        rotary(positions)
        [sent] = rotary._on_device.values()
        assert sent.device == GPU
        assert rotary(positions).cos_BTH.device == GPU
        assert list(rotary._on_device.values()) == [sent]


def test_loss_and_wishes_are_reduced_on_the_device(waited: list[Wait]) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert mean_over_ranks([1.0], GPU) == [1.0]
    assert waited == [Wait.STEP]
