"""The work of a rank with its tensors on a GPU, without one: `FakeTensorMode` knows shapes, dtypes and devices alone.

It raises where tensors of two devices meet and where the host reads what a device computes. Only the backward pass
needs a device.
"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from arctic_model import devices
from arctic_model.config import ArcticConfig
from arctic_model.devices import Wait
from arctic_workers.training.checkpoint import checkpointer
from arctic_workers.training.checkpoint.zero import KINDS, finish_restore, prepare_optimizer
from arctic_workers.training.data.windows import Stream
from arctic_workers.training.engine import (
    LossModule,
    Ranks,
    fill_model,
    gradient_norm,
    mean_over_ranks,
    shape_model,
)
from arctic_workers.training.held_out import HeldOut
from arctic_workers.training.optimizer import UnpartitionedAdamW

GPU = torch.device("cuda", 0)
RANKS = Ranks(0, 1, 0, GPU)
SEQUENCES, LENGTH = 2, 8
CONFIG = ArcticConfig.preset("arctic-tiny").replace(
    vocab_size=64, num_hidden_layers=2, moe_layer_frequency=2, num_local_experts=4, hidden_size=32, intermediate_size=16
)
ROWS = SEQUENCES * LENGTH * CONFIG.num_experts_per_tok
KNOWN = {
    Wait.EXPERT_ROWS: [ROWS // CONFIG.num_local_experts] * CONFIG.num_local_experts,
    Wait.STEP: [1.0],
    Wait.HELD_OUT: [6.0, 2.0],
}


@pytest.fixture(autouse=True)
def waited(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Wait]]:
    """A world of one, and values for all that a rank may wait for; what it waited for."""
    done: list[Wait] = []

    def on_host(_: torch.Tensor, wait: Wait) -> list[float]:
        done.append(wait)
        return KNOWN[wait]

    monkeypatch.setattr(devices, "on_host", on_host)
    dist.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
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
        assert waited == [Wait.EXPERT_ROWS]
        with pytest.raises(DataDependentOutputException):
            float(loss)


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


def test_loss_and_wishes_are_reduced_on_the_device(waited: list[Wait]) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert mean_over_ranks([1.0], GPU) == [1.0]
    assert waited == [Wait.STEP]
