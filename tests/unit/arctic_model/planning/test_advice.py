"""What to change in a group that does not fit: every piece of advice, taken, fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_model.config import ArcticConfig
from arctic_model.planning.advice import advise
from arctic_model.planning.devices import DEVICES, Device
from arctic_model.planning.serving import Serving, plan_serving

ARCTIC = ArcticConfig()
H100 = DEVICES["h100"]
NAMES = {
    "quantization.weights": "weights",
    "quantization.kvCache": "kv_cache",
    "attention.maxLength": "max_length",
    "parallelism.tensor": "tensor",
    "parallelism.pipeline": "pipeline",
}


def taken(serving: Serving, fields: dict) -> Serving:
    return replace(serving, **{NAMES[field]: value for field, value in fields.items()})


def fields_of(serving: Serving, device: Device = H100) -> list[dict]:
    return [change.fields for change in advise(plan_serving(serving, device))]


def test_one_change_is_enough_where_one_is():
    assert fields_of(Serving(ARCTIC, weights="bf16", tensor=8, pipeline=1)) == [
        {"quantization.weights": "fp8"},
        {"parallelism.tensor": 8, "parallelism.pipeline": 2},
    ]


def test_formats_and_layout_change_together_where_neither_is_enough():
    small = replace(H100, memory=6_200_000_000)  # room for a layer in FP8, and not in bf16
    serving = Serving(ARCTIC, weights="bf16", tensor=1, pipeline=1)
    (fields,) = fields_of(serving, small)
    assert fields["quantization.weights"] == "fp8"
    assert fields["parallelism.pipeline"] > 1
    assert plan_serving(taken(serving, fields), small).fits


def test_fewer_positions_are_as_many_as_have_room():
    config = ARCTIC.replace(max_position_embeddings=10**7)
    plan = plan_serving(Serving(config, tensor=8, pipeline=2, max_length=10**7), H100)
    lengths = [change.fields.get("attention.maxLength") for change in advise(plan)]
    (length,) = filter(None, lengths)
    assert plan.kv_tokens - 32 < length <= plan.kv_tokens


def test_the_smallest_layout_is_advised():
    serving = Serving(ARCTIC, weights="bf16", tensor=1, pipeline=1)
    (change,) = advise(plan_serving(serving, H100))
    assert (change.plan.serving.tensor, change.plan.serving.pipeline) == (8, 2)
    for tensor, pipeline in ((8, 1), (4, 2), (4, 1)):
        assert not plan_serving(replace(serving, tensor=tensor, pipeline=pipeline), H100).fits


def test_nothing_is_advised_that_may_not_be_written():
    plan = plan_serving(Serving(ARCTIC, weights="bf16", tensor=8, pipeline=1), H100)
    advised = advise(plan, allowed=lambda fields: "quantization.weights" not in fields)
    assert [change.fields for change in advised] == [{"parallelism.tensor": 8, "parallelism.pipeline": 2}]
    assert advise(plan, allowed=lambda _: False) == []


def test_nothing_helps_where_one_layer_is_too_much():
    assert advise(plan_serving(Serving(ARCTIC), replace(H100, memory=2**31, runtime=0))) == []


@settings(max_examples=60)
@given(
    st.sampled_from(["fp8", "bf16", "fp32"]),
    st.sampled_from(["fp8", "bf16", "fp32"]),
    st.sampled_from([1, 2]),
    st.integers(1, 4),
    st.sampled_from([64, 1024]),
    st.integers(500_000, 30_000_000),
    st.sampled_from(["bf16", "fp32"]),
)
def test_advice_that_is_taken_fits(weights, kv_cache, tensor, pipeline, length, memory, compute):
    device = replace(H100, memory=memory, runtime=0)
    serving = Serving(
        ArcticConfig.preset("arctic-tiny"),
        weights=weights,
        kv_cache=kv_cache,
        compute=compute,
        tensor=tensor,
        pipeline=pipeline,
        max_length=length,
        token_budget=16,
        max_sequences=2,
    )
    plan = plan_serving(serving, device)
    changes = advise(plan)
    for change in changes:
        again = plan_serving(taken(serving, change.fields), device)
        assert again.fits
        assert again == change.plan
    if not plan.fits and not changes:
        narrowest = replace(serving, weights="fp8", kv_cache="fp8", tensor=2, pipeline=4)
        assert not plan_serving(narrowest, device).fits


@pytest.mark.parametrize("device", DEVICES)
def test_arctic_fits_on_some_layout_of_every_device(device):
    (first, *_) = advise(plan_serving(Serving(ARCTIC, weights="bf16"), DEVICES[device]))
    assert first.plan.fits
