"""What serving takes, against figures made by hand, the parameter count, and tensors of real quantised models."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from arctic_model.config import ArcticConfig
from arctic_model.cost import count_parameters, kv_bytes_per_token, step_bytes
from arctic_model.fp8 import quantize_model
from arctic_model.initialization import init_weights
from arctic_model.model import ArcticModel
from arctic_model.parallel import plan_inference
from arctic_model.planning.devices import BYTES, DEVICES, GIB, Device
from arctic_model.planning.serving import Serving, plan_serving

ARCTIC = ArcticConfig()
H100 = DEVICES["h100"]
LARGE = Device(title="large", memory=2**60, runtime=0, bandwidth=1e12, bf16_flops=None, fp8_flops=None, per_node=64)


@st.composite
def configs(draw: st.DrawFn) -> ArcticConfig:
    """Small models of all shapes: uneven layers, few and many experts, layers without experts."""
    grouped = draw(st.sampled_from([1, 2, 4]))
    heads = grouped * draw(st.integers(1, 3))
    experts = draw(st.integers(1, 6))
    layers = draw(st.integers(1, 7))
    return ArcticConfig.preset("arctic-tiny").replace(
        vocab_size=draw(st.integers(1, 40)),
        hidden_size=heads * 2 * draw(st.integers(1, 3)),
        intermediate_size=4 * draw(st.integers(1, 6)),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=grouped,
        num_local_experts=experts,
        num_experts_per_tok=draw(st.integers(1, experts)),
        moe_layer_frequency=draw(st.integers(1, layers + 1)),
        max_position_embeddings=64,
    )


@st.composite
def servings(draw: st.DrawFn) -> Serving:
    config = draw(configs())
    formats = st.sampled_from(sorted(BYTES))
    return Serving(
        config=config,
        weights=draw(formats),
        kv_cache=draw(formats),
        tensor=draw(st.sampled_from([degree for degree in (1, 2, 4) if config.num_key_value_heads % degree == 0])),
        pipeline=draw(st.integers(1, config.num_hidden_layers)),
        max_length=draw(st.integers(1, 64)),
        visible=draw(st.none() | st.integers(1, 80)),
        step_room=draw(st.integers(0, 40)),
        token_budget=draw(st.integers(1, 64)),
        max_sequences=draw(st.integers(1, 8)),
        memory_fraction=draw(st.floats(0.1, 0.95)),
    )


def test_arctic_in_fp8_on_two_nodes_of_eight_h100():
    # By hand from the published config.json: hidden 7168, intermediate 4864, 35 layers, 56 heads of 128, 8 key-value
    # heads, 128 experts, vocabulary 32000. The layers are cut 17 + 18.
    plan = plan_serving(Serving(ARCTIC, tensor=8, pipeline=2), H100)
    assert [rank.layers for rank in plan.ranks] == [range(17), range(17, 35)]
    first, last = plan.ranks
    assert first.weights == {
        "embedding": 2 * 32000 * 7168 // 8,
        "attention": 17 * (7168 * 7168 * 2 + 7168 * 1024 * 2) // 8,
        "residual MLP": 17 * 3 * 7168 * 7168 // 8,
        "experts": 17 * 128 * 3 * 7168 * 4864 // 8,
        "router": 2 * 17 * 128 * 7168,
        "norms": 2 * 17 * 3 * 7168,
    }
    assert last.weights["lm_head"] == 32000 * 7168 // 8
    assert last.weights["experts"] == 18 * 128 * 3 * 7168 * 4864 // 8
    # A scale for each output channel: of w2 and o each rank has all, as these are cut by columns.
    assert first.scales["experts"] == 4 * 17 * 128 * (2 * 4864 // 8 + 7168)
    assert first.scales["attention"] == 4 * 17 * ((7168 + 2 * 1024) // 8 + 7168)
    weights = [rank.weights.total() + rank.scales.total() for rank in plan.ranks]
    assert [round(each / 1e9, 2) for each in weights] == [29.19, 30.88]
    assert round(8 * sum(weights) / 1e9) == 481  # 478.6e9 parameters, scales, and what is bf16 or on every rank


@pytest.mark.parametrize(
    ("kv_cache", "scaled", "bytes_per_token"),
    [("bf16", False, 143_360), ("bf16", True, 143_360), ("fp8", False, 71_680), ("fp8", True, 73_920)],
)
def test_keys_and_values_of_arctic_that_fit_beside_it(kv_cache, scaled, bytes_per_token):
    # 143,360 bytes of bf16 a token: 2 x 35 layers x 8 heads x 128 x 2, shared out over the 16 ranks. 4 bytes a scale.
    plan = plan_serving(Serving(ARCTIC, kv_cache=kv_cache, kv_scaled=scaled, tensor=8, pipeline=2), H100)
    assert 8 * sum(rank.kv_bytes_per_token for rank in plan.ranks) == bytes_per_token
    rank = plan.ranks[1]  # the one with 18 layers
    left = int(79.1 * GIB) - 3 * GIB - rank.weights.total() - rank.scales.total() - rank.activations
    assert plan.kv_tokens == int(left * 0.9) // (bytes_per_token * 18 // 35 // 8)
    assert plan.sequences == plan.kv_tokens // 4096
    assert plan.fits


def test_where_the_share_is_one_of_all_memory_weights_and_a_step_are_within_it():
    asked = Serving(ARCTIC, tensor=8, pipeline=2, memory_fraction=0.5, shares_all=True)
    last = plan_serving(asked, H100).ranks[1]
    assert last.kv_bytes == H100.memory // 2 - last.used
    assert plan_serving(replace(asked, memory_fraction=0.4), H100).sequences == 0


def test_one_request_alone_reads_what_is_active():
    # 17.32e9 active parameters less the embedding of 0.23e9, on 8 GPUs at once at 3.35e12 bytes a second.
    plan = plan_serving(Serving(ARCTIC, tensor=8, pipeline=2), H100)
    assert plan.tokens_per_second_limit() == pytest.approx(3.35e12 / ((17.32e9 - 0.23e9) / 8), rel=0.04)
    # An eighth of a token's keys and values on each, of which a device reads both ranks' in turn.
    difference = 1 / plan.tokens_per_second_limit(4096) - 1 / plan.tokens_per_second_limit(0)
    assert difference == pytest.approx(4096 * 143_360 / 8 / 3.35e12)


@given(servings())
def test_parts_of_all_ranks_are_the_whole_model(serving):
    plan = plan_serving(replace(serving, weights="bf16"), LARGE)
    total = sum((rank.weights for rank in plan.ranks), Counter())
    on_every_rank = total["norms"] + total["router"]
    padding = 2 * 2 * (-serving.config.vocab_size % serving.tensor) * serving.config.hidden_size
    whole = serving.tensor * (total.total() - on_every_rank) + on_every_rank - padding
    assert whole == 2 * count_parameters(serving.config).total
    cached = serving.tensor * sum(rank.kv_bytes_per_token for rank in plan.ranks)
    assert cached == kv_bytes_per_token(serving.config, bytes_per_element=BYTES[serving.kv_cache])


def bytes_of(model: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


@settings(max_examples=40)
@given(servings())
def test_weights_of_a_rank_are_those_of_the_quantised_model(serving):
    serving = replace(serving, tensor=1)
    slices = plan_inference(serving.config, pipeline=serving.pipeline).slices
    for rank, part in zip(plan_serving(serving, LARGE).ranks, slices, strict=True):
        model = ArcticModel(serving.config, part.layers, embed=part.embed, lm_head=part.lm_head)
        model.to(torch.float32 if serving.weights == "fp32" else torch.bfloat16)
        if serving.weights == "fp8":
            quantize_model(model)
        assert rank.weights.total() + rank.scales.total() == bytes_of(model)


def test_weights_of_a_tensor_rank_are_pieces_of_the_quantised_model(config, model):
    config = config.replace(vocab_size=51)
    model = ArcticModel(config).bfloat16()
    init_weights(model, seed=3)
    quantize_model(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def first_piece(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if "norm" in name or "gate" in name or name.endswith(("o_proj.weight_scale", "w2_scale", "w2.weight_scale")):
            return tensor
        if name.endswith(("o_proj.weight", "w2", "w2.weight")):
            return tensor.chunk(2, -1)[0]
        return tensor.chunk(2, 1 if ".experts." in name else 0)[0]

    (rank,) = plan_serving(Serving(config, tensor=2), LARGE).ranks
    pieces = [first_piece(name, tensor) for name, tensor in tensors.items()]
    assert rank.weights.total() + rank.scales.total() == sum(piece.numel() * piece.itemsize for piece in pieces)


class Live(TorchDispatchMode):
    """Follows the bytes of all tensors that are made and not yet gone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._known:
                self._note(tensor.untyped_storage())
        return outputs

    def _note(self, storage: torch.UntypedStorage) -> None:
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, identity: int, size: int) -> None:
        self._known.discard(identity)
        self.now -= size


@pytest.mark.parametrize("frequency", [1, 2, 9])
@torch.inference_mode()
def test_room_for_activations_is_at_least_what_a_step_holds_at_once(config, frequency):
    config = config.replace(moe_layer_frequency=frequency, hidden_size=96, intermediate_size=160)
    model = ArcticModel(config)
    init_weights(model, seed=3)
    tokens = torch.zeros(1, 512, dtype=torch.long)
    with Live() as live:
        x_BTD = model.embed(tokens)
        model.run_layers(x_BTD, torch.arange(512)[None])
    planned = Serving(config, weights="fp32", compute="fp32", token_budget=512, max_sequences=1)
    assert live.most > 512 * config.hidden_size * 4 * 3  # it has seen the layers
    (rank,) = plan_serving(planned, LARGE).ranks
    assert live.most <= rank.activations


@given(servings(), st.integers(0, 400_000), st.integers(0, 400_000))
def test_more_memory_never_fits_less(serving, memory, more):
    # With fp32 to compute in that is not so: the native engine may use more memory for wide matrices.
    few = plan_serving(serving, replace(LARGE, memory=memory))
    many = plan_serving(serving, replace(LARGE, memory=memory + more))
    assert few.kv_tokens <= many.kv_tokens
    assert few.sequences <= many.sequences
    assert few.fits <= many.fits


@given(servings(), st.integers(0, 400_000))
def test_what_is_planned_stays_within_the_device(serving, memory):
    plan = plan_serving(serving, replace(LARGE, memory=memory))
    for rank in plan.ranks:
        if plan.kv_tokens:
            assert rank.used + plan.kv_tokens * rank.kv_bytes_per_token <= memory
    assert plan.fits == (plan.kv_tokens >= serving.sequence_tokens)
    assert plan.sequences * serving.sequence_tokens <= plan.kv_tokens


@given(configs(), st.integers(0, 64))
def test_the_limit_of_one_request_reads_what_a_decoding_step_reads(config, context):
    plan = plan_serving(Serving(config, weights="bf16"), LARGE)
    read = step_bytes(config, tokens=1, context_tokens=context, bytes_per_parameter=2)
    assert plan.tokens_per_second_limit(context) == pytest.approx(1e12 / read)


def test_a_window_bounds_what_a_request_keeps():
    serving = Serving(ARCTIC, tensor=8, pipeline=2, max_length=100_000, visible=4100)
    plan = plan_serving(serving, H100)
    assert serving.sequence_tokens == 4128  # whole blocks of 32
    assert plan.sequences == plan.kv_tokens // 4128
    assert plan.tokens_per_second_limit(100_000) == plan.tokens_per_second_limit(4100)
    assert replace(serving, step_room=256).sequence_tokens == 4384  # 4356 in whole blocks
    assert replace(serving, step_room=256, max_length=4200).sequence_tokens == 4224


def test_nobody_says_how_fast_a_device_of_unknown_bandwidth_is():
    assert plan_serving(Serving(ARCTIC), replace(LARGE, bandwidth=None)).tokens_per_second_limit() is None


@pytest.mark.parametrize(
    ("degrees", "sentence"),
    [
        ({"tensor": 16}, "tensor is 16 and a node has 8 x H100 80GB SXM: .* write at most 8, and more pipeline ranks"),
        ({"tensor": 3}, r"tensor is 3 and does not divide the model's attention heads \(56\) or .*; write one of 1, 2"),
        ({"pipeline": 36}, "pipeline is 36 and the model has 35 layers; write at most 35"),
    ],
)
def test_degrees_that_cannot_be_are_refused(degrees, sentence):
    with pytest.raises(ValueError, match=sentence):
        plan_serving(Serving(ARCTIC, **degrees), H100)


def test_devices_are_in_the_order_that_their_vendor_sells_them_in():
    a100, h100, h200, b200 = (DEVICES[name] for name in ("a100", "h100", "h200", "b200"))
    assert a100.memory == h100.memory < h200.memory < b200.memory
    assert a100.bandwidth < h100.bandwidth < h200.bandwidth < b200.bandwidth
    assert a100.fp8_flops is None
    assert all(device.fp8_flops == 2 * device.bf16_flops for device in (h100, h200, b200))
