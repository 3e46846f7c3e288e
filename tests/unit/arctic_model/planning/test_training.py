"""What training takes, against figures made by hand, what autograd really keeps, and laws that hold for any world."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensor
from torch.utils.flop_counter import FlopCounterMode

from arctic_model.config import ArcticConfig
from arctic_model.cost import count_parameters, recomputed_flops_per_token, training_flops_per_token
from arctic_model.initialization import init_weights
from arctic_model.lora import add_adapter
from arctic_model.loss import loss_sum
from arctic_model.model import ArcticModel
from arctic_model.planning.devices import DEVICES, GIB, Device, cpu
from arctic_model.planning.training import (
    Stage,
    Training,
    inputs_of_layer,
    plan_training,
    saved_by_layer,
    shared_by,
)
from arctic_model.planning.training_advice import advise

ARCTIC, TINY = ArcticConfig(), ArcticConfig.preset("arctic-tiny")
H100 = DEVICES["h100"]
STAGE = Stage("general", tokens=10**12, tokens_per_step=2**23, sequence_length=4096)
PUBLISHED = Training(ARCTIC, (STAGE,), nodes=128, processes_per_node=8, expert_parallel=128)


def test_memory_of_arctic_on_1024_devices_by_hand():
    plan = plan_training(PUBLISHED, H100)
    dense, experts = 9.965e9 + 32e6, 128 * 3.661e9
    # 128 ranks share out the experts, so 8 ranks have the same one.
    assert plan.memory["weights"] == pytest.approx(2 * (dense + experts / 128), rel=0.001)
    partition = dense / 1024 + experts / 128 / 8
    assert plan.memory["gradients"] == pytest.approx(2 * partition, rel=0.001)
    assert plan.memory["optimizer"] == pytest.approx(12 * partition, rel=0.001)
    assert plan.memory["runtime"] == 3 * GIB


@pytest.mark.parametrize(
    ("stage", "gradients", "optimizer"), [(0, 4, 8), (1, 4, 12 / 8), (2, 4 / 8, 12 / 8)], ids=["none", "one", "two"]
)
def test_zero_shares_out_what_its_stages_name(stage, gradients, optimizer):
    # Rajbhandari et al. 2020, figure 1: with 8 data-parallel ranks, of 4 + 12 bytes a parameter in fp32. Without
    # partitions weights in fp32 are their own masters.
    count = count_parameters(TINY).total
    training = Training(TINY, (Stage("s", 10**6, 8192, 128),), processes_per_node=8, zero_stage=stage, compute="fp32")
    memory = plan_training(training, replace(H100, fp32_flops=1e12)).memory
    assert memory["weights"] == 4 * count
    assert memory["gradients"] == pytest.approx(gradients * count, abs=8)
    assert memory["optimizer"] == pytest.approx(optimizer * count, abs=8)


def test_masters_without_partitions_are_beside_weights_in_bf16():
    count = count_parameters(TINY).total
    training = Training(TINY, (Stage("s", 10**6, 8192, 128),), processes_per_node=8, zero_stage=0)
    memory = plan_training(training, H100).memory
    assert (memory["weights"], memory["gradients"], memory["optimizer"]) == (2 * count, 2 * count, 12 * count)
    of_all = count_parameters(TINY)
    assert memory["buffers"] == 2 * (of_all.dense + of_all.routers)  # more than experts, which are reduced apart


def test_one_rank_in_fp32_has_no_masters_and_no_buffers():
    count = count_parameters(TINY).total
    training = Training(TINY, (Stage("s", 10**6, 8192, 128),), processes_per_node=1, compute="fp32")
    memory = plan_training(training, replace(H100, fp32_flops=1e12)).memory
    assert sum(memory[part] for part in ("weights", "gradients", "optimizer", "buffers")) == 16 * count


def all_tensors() -> list[torch.Tensor]:
    """All that there are, but for those of other tests that have no memory."""
    kinds = ((it, type(it)) for it in gc.get_objects())
    return [it for it, kind in kinds if issubclass(kind, torch.Tensor) and not issubclass(kind, FakeTensor)]


def memory_of(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes of each piece of memory that some tensors have, by its address."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("frequency", [1, 2])
def test_what_a_layer_keeps_is_what_autograd_keeps(frequency, recomputed):
    config = TINY.replace(moe_layer_frequency=frequency, num_local_experts=4)
    model = ArcticModel(config)
    init_weights(model, 0)
    model.recompute(recomputed)
    kept: list[torch.Tensor] = []  # so that no memory is given anew

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    x_BTD = torch.randn(2, 64, config.hidden_size, requires_grad=True)
    before = memory_of(it for it in all_tensors() if it is not x_BTD)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out, _ = model.run_layers(x_BTD, torch.arange(64).expand(2, 64))
    # What is computed again hangs on what went in, which no hook sees.
    kept += [it for it in all_tensors() if it is not out]
    real = sum(size for address, size in memory_of(kept).items() if address not in before)
    count = inputs_of_layer if recomputed else saved_by_layer
    planned = 4 * 2 * 64 * sum(count(config, layer) for layer in range(config.num_hidden_layers))
    assert planned == pytest.approx(real, rel=0.05)


def test_activations_are_computed_again_only_in_stages_that_have_no_room_for_them():
    long = replace(STAGE, name="long", tokens_per_step=2**25, sequence_length=2**15)
    training = replace(PUBLISHED, config=ARCTIC.replace(max_position_embeddings=2**15), stages=(STAGE, long))
    plan = plan_training(training, DEVICES["h200"])
    assert plan.recomputed == (False, True)
    kept, again = plan.steps
    assert again.compute / kept.compute > 4 * 4 / 3  # four times the tokens, and more of attention
    assert plan_training(training, replace(H100, memory=10**15)).recomputed == (False, False)


def test_time_of_a_step_by_hand():
    plan = plan_training(PUBLISHED, replace(H100, memory=200 * GIB))  # so that nothing is computed again
    (step,) = plan.steps
    tokens = 2**23 / 1024  # of a rank: two micro-batches of 4,096
    half = 6 * 35 * 7168 * 4096  # of attention: no token sees those after it
    assert step.compute == pytest.approx(tokens * (training_flops_per_token(ARCTIC, 4096) - half) / 989.5e12)
    # Each token's two rows of 7168 bf16 go out to 127 of 128 ranks, of which 120 are on other nodes, and come back, and
    # both again backward, in 35 layers; 50 GB/s is the slower way.
    assert step.exchange == pytest.approx(35 * 4 * tokens * 2 * 127 / 128 * 7168 * 2 * 120 / 127 / 50e9)
    assert step.exposed == 0
    assert step.total == step.compute + step.reduction + step.optimizer
    assert plan.seconds == pytest.approx(STAGE.steps * step.total)
    assert plan.mfu == pytest.approx(tokens * training_flops_per_token(ARCTIC, 4096) / 989.5e12 / step.total)


@pytest.mark.parametrize("frequency", [1, 2])
def test_where_an_adapter_alone_is_trained_the_bound_is_what_autograd_does(frequency):
    config = TINY.replace(moe_layer_frequency=frequency)
    model, length = ArcticModel(config), 16
    init_weights(model, 0)
    add_adapter(model, rank=1, alpha=1.0, seed=0)
    tokens = torch.randint(config.vocab_size, (1, length))
    with FlopCounterMode(display=False) as counter:  # it counts no attention
        hidden, _ = model.run_layers(model.model.embed_tokens(tokens), torch.arange(length)[None])
        hidden = model.model.norm(hidden).flatten(0, 1)
        loss_sum(hidden, model.lm_head.weight, tokens[0], torch.ones(length)).backward()
    attention = 6 * config.num_hidden_layers * config.hidden_size * length * length
    training = Training(config, (Stage("s", length, length, length),), frozen=True)
    plan = plan_training(training, replace(DEVICE, bf16_flops=1.0))
    assert plan.steps[0].compute - attention == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert plan.steps[0].compute - attention < counter.get_total_flops()
    assert 1 < plan.mfu < 2, "it counts attention as if it were not causal"


def test_a_frozen_output_matrix_has_no_gradient():
    trained, frozen = (plan_training(replace(PUBLISHED, frozen=each), H100).memory["loss"] for each in (False, True))
    assert trained - frozen == 4 * ARCTIC.vocab_size * ARCTIC.hidden_size


def test_an_exchange_that_its_layer_cannot_hide_is_exposed():
    slow = replace(H100, network=5e9)
    (step,) = plan_training(PUBLISHED, slow).steps
    assert 0 < step.exposed < step.exchange
    assert step.blocking == pytest.approx(step.total + step.exchange - step.exposed)


def test_products_in_fp8_take_their_own_rate_and_the_rest_takes_bf16s():
    roomy = replace(H100, memory=200 * GIB)
    (plain,), (step,) = (plan_training(replace(PUBLISHED, fp8=fp8), roomy).steps for fp8 in (False, True))
    tokens = 2**23 / 1024
    # Of a layer by hand: queries and outputs 7168 x 7168, keys and values 7168 x 1024 each, residual MLP, two experts.
    products = 6 * 35 * (2 * 7168**2 + 2 * 7168 * 1024 + 3 * 7168**2 + 2 * 3 * 7168 * 4864)
    rest = training_flops_per_token(ARCTIC, 4096) - 6 * 35 * 7168 * 4096 - products
    assert step.compute == pytest.approx(tokens * (products / 1979e12 + rest / 989.5e12))
    assert (step.exchange, step.reduction, step.optimizer) == (plain.exchange, plain.reduction, plain.optimizer)


def test_products_in_fp8_that_are_computed_again_take_its_rate_too():
    kept, again = (
        plan_training(replace(PUBLISHED, fp8=True), replace(H100, memory=memory)) for memory in (200 * GIB, 60 * GIB)
    )
    assert (kept.recomputed, again.recomputed) == ((False,), (True,))
    more = again.steps[0].compute - kept.steps[0].compute
    pairs = 2 * 35 * 7168 * 4096  # of attention, forward
    products = recomputed_flops_per_token(ARCTIC, 4096) - pairs
    assert more == pytest.approx(2**23 / 1024 * (products / 1979e12 + pairs / 989.5e12))


def test_fp8_without_units_for_it_is_refused_on_gpus_and_rounds_on_cpus():
    with pytest.raises(ValueError, match="precision is fp8, and A100 80GB SXM has no units for it"):
        plan_training(replace(PUBLISHED, fp8=True), DEVICES["a100"])
    training = Training(TINY, (Stage("s", 10**6, 8192, 128),), compute="fp32")
    machine = cpu(memory=GIB, bandwidth=1e10, fp32_flops=1e11)
    plain, rounded = (plan_training(replace(training, fp8=fp8), machine) for fp8 in (False, True))
    assert (rounded.steps, rounded.memory) == (plain.steps, plain.memory)


@st.composite
def trainings(draw: st.DrawFn) -> Training:
    nodes, per_node = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2]))
    world = nodes * per_node
    micro, length = draw(st.integers(1, 3)), draw(st.sampled_from([16, 64]))
    return Training(
        TINY.replace(moe_layer_frequency=draw(st.integers(1, 3)), num_hidden_layers=3),
        (Stage("s", draw(st.integers(1, 10**7)), world * micro * length * draw(st.integers(1, 3)), length),),
        nodes=nodes,
        processes_per_node=per_node,
        expert_parallel=draw(st.sampled_from([n for n in (1, 2, 4, 8) if world % n == 0])),
        zero_stage=draw(st.sampled_from([0, 1, 2])),
        micro_batch_size=micro,
        compute=draw(st.sampled_from(["fp32", "bf16"])),
    )


DEVICE = Device(
    title="d",
    memory=GIB,
    runtime=0,
    bandwidth=1e10,
    bf16_flops=1e12,
    fp8_flops=None,
    per_node=8,
    fp32_flops=1e11,
    fabric=1e9,
    network=1e8,
)


@settings(max_examples=60)
@given(trainings())
def test_the_ranks_of_a_world_hold_the_model_and_its_state_as_often_as_zero_says(training):
    plan = plan_training(training, DEVICE)
    count = count_parameters(training.config)
    copies = training.world / training.expert_parallel
    everywhere = (count.dense + count.routers) * training.world + count.experts * copies
    width = 4 if training.compute == "fp32" else 2
    assert plan.memory["weights"] * training.world == pytest.approx(width * everywhere, rel=1e-3)
    states = everywhere if training.zero_stage == 0 else count.total
    own_masters = training.compute == "fp32" and (training.zero_stage == 0 or training.world == 1)
    assert plan.memory["optimizer"] * training.world == pytest.approx((8 if own_masters else 12) * states, rel=1e-3)


@settings(max_examples=60)
@given(trainings())
def test_no_bound_is_below_arithmetic_or_above_what_blocks(training):
    (step,) = plan_training(training, DEVICE).steps
    assert 0 <= step.compute <= step.total <= step.blocking
    alone = training.world == 1
    assert (step.exchange == 0) == (training.expert_parallel == 1)
    assert (step.reduction == 0) == alone
    assert 0 < plan_training(training, DEVICE).mfu < 2


@settings(max_examples=60)
@given(trainings(), st.floats(0.05, 1))
def test_advice_fits_and_is_allowed(training, share):
    needed = plan_training(training, DEVICE).memory.total()
    small = replace(DEVICE, memory=int(needed * share))
    for change in advise(training, small, lambda fields: "parallelism.nodes" not in fields):
        assert change.plan.fits
        assert "parallelism.nodes" not in change.fields


def test_ranks_of_a_machine_share_it():
    device = shared_by(cpu(memory=64 * GIB, bandwidth=20e9, fp32_flops=2e11), 2)
    assert (device.memory, device.bandwidth, device.fp32_flops) == (32 * GIB, 10e9, 1e11)
    assert device.bf16_flops is None
    assert device.flops("bf16") is None


def test_without_rates_memory_alone_is_planned():
    plan = plan_training(
        Training(TINY, (Stage("s", 4096, 4096, 128),), compute="fp32"), cpu(memory=GIB, bandwidth=None)
    )
    assert plan.fits
    assert plan.seconds is None
    assert plan.mfu is None
    assert plan.spending(0.4) is None


def test_degrees_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="expertParallel is 3"):
        plan_training(replace(PUBLISHED, expert_parallel=3), H100)
