"""What a group of the native engine is started with."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from arctic_api.world import InferenceGroup
from arctic_model.config import ArcticConfig
from arctic_model.parallel import LayerSlice
from arctic_model.quantization import Quantization
from arctic_model.quantize import quantize_checkpoint
from arctic_workers.inference.engine import UNLIMITED, Refused
from arctic_workers.inference.engines.native.plan import Plan, plan_group
from arctic_workers.inference.engines.native.window import Window


def test_a_manifest_says_all_that_ranks_are_started_with(
    make_group: Callable[..., list[InferenceGroup]], model_folder: Path
) -> None:
    groups = make_group(
        2,
        parallelism={"pipeline": 2, "tensor": 3},
        quantization={"weights": "bf16", "kvCache": "fp32"},
        attention={"maxLength": 200},
        batching={
            "tokenBudget": 32,
            "maxSequences": 3,
            "kvCache": {"memoryFraction": 0.5},
            "prefixCaching": "perKey",
            "targetInterTokenLatency": "50ms",
            "suffixDecoding": True,
        },
        engine={"name": "native", "options": {"pipeline_format": "bf16", "enable_expert_parallel": True}},
        model={"uri": "file:///models/tiny", "adapters": [{"name": "clerk", "uri": "file:///models/clerk"}]},
    )
    first, second = map(plan_group, groups)
    assert first == second
    assert first == Plan(
        folder=model_folder,
        adapters={"clerk": Path("/models/clerk")},
        config=ArcticConfig.from_folder(model_folder),
        slices=(
            LayerSlice(layers=range(2), embed=True, lm_head=False),
            LayerSlice(layers=range(2, 4), embed=False, lm_head=True),
        ),
        tensor=3,
        whole_experts=True,
        weights="bf16",
        kv_cache="fp32",
        max_length=200,
        window=None,
        max_sequences=3,
        token_budget=32,
        target_between_tokens=0.05,
        prefix_caching="perKey",
        suffix_decoding=True,
        memory_fraction=0.5,
        pipeline_format="bf16",
        rounds_large_steps=False,
        rounds_rows=False,
    )
    assert first.most_blocks == 3 * 13
    # 16 tokens of keys and values of 2 layers, 2 heads of 16 numbers of 4 bytes, or of one and a scale.
    assert [first.block_bytes(rank) for rank in range(2)] == [16 * 2 * 2 * 2 * 16 * 4] * 2
    assert replace(first, kv_cache="fp8").block_bytes(0) == 16 * 2 * 2 * 2 * (16 + 4)
    assert first.block_bytes(0, processes=2) == first.block_bytes(0) // 2


def test_an_adapters_folder_is_all_behind_the_scheme(make_group: Callable[..., list[InferenceGroup]]) -> None:
    uris = {"hash": "file:///models/c#/a?", "space": "file:///models/a%20b"}
    adapters = [{"name": name, "uri": uri} for name, uri in uris.items()]
    [group] = make_group(1, model={"uri": "file:///models/tiny", "adapters": adapters})
    assert plan_group(group).adapters == {"hash": Path("/models/c#/a?"), "space": Path("/models/a b")}


@pytest.mark.parametrize(
    ("tensor", "gpus", "sentence"),
    [
        (4, 2, r"parallelism.tensor is 4 and this pod has 2 GPUs: .* write at most 2, or more nvidia.com/gpu"),
        (4, 4, r"parallelism.tensor is 4 and does not divide .*key-value heads \(2\).*; write"),
        (2, 2, r"parallelism.tensor is 2 and does not divide the model's intermediate_size \(75\); write 1"),
    ],
)
def test_tensor_ranks_are_refused_where_gpus_or_the_model_have_no_place_for_them(
    make_group: Callable[..., list[InferenceGroup]], tensor: int, gpus: int, sentence: str
) -> None:
    plan = plan_group(make_group(1, parallelism={"tensor": tensor})[0])
    with pytest.raises(Refused, match=sentence):
        plan.check_processes(gpus)


def test_large_steps_are_rounded_on_gpus_alone_and_where_weights_are(
    make_group: Callable[..., list[InferenceGroup]],
) -> None:
    def plan(quantization: str = "fp8", **options: object) -> Plan:
        engine = {"name": "native", "options": {"large_step_format": "fp8"} | options}
        return plan_group(make_group(1, quantization={"weights": quantization}, engine=engine)[0])

    plan().check_device(gpu=True, multiplies_bf16=lambda: False)
    plan(large_step_format="fp32").check_device(gpu=False, multiplies_bf16=lambda: False)
    for sentence, asked, gpu in (
        ("large_step_format is fp8 and this pod sees no GPU: .* leave it out", plan(), False),
        ("large_step_format is fp8 and quantization.weights is bf16", plan("bf16"), True),
        ("large_step_format is fp8 and enable_expert_parallel is true", plan(enable_expert_parallel=True), True),
    ):
        with pytest.raises(Refused, match=sentence):
            asked.check_device(gpu=gpu, multiplies_bf16=lambda: False)


def test_rows_are_rounded_on_cpus_that_multiply_them_and_where_weights_are(
    make_group: Callable[..., list[InferenceGroup]],
) -> None:
    def plan(quantization: str = "fp8", row_format: str = "bf16") -> Plan:
        engine = {"name": "native", "options": {"row_format": row_format}}
        return plan_group(make_group(1, quantization={"weights": quantization}, engine=engine)[0])

    plan().check_device(gpu=False, multiplies_bf16=lambda: True)
    plan(row_format="fp32").check_device(gpu=True, multiplies_bf16=lambda: False)
    for sentence, asked, gpu, multiplies in (
        ("row_format is for CPUs and this pod computes on a GPU: leave it out", plan(), True, True),
        ("row_format is bf16 and quantization.weights is fp32", plan("fp32"), False, True),
        ("row_format is bf16, which this pod's processor does not multiply", plan(), False, False),
    ):
        with pytest.raises(Refused, match=sentence):
            asked.check_device(gpu=gpu, multiplies_bf16=lambda multiplies=multiplies: multiplies)


def test_ranks_without_an_expert_are_refused(make_group: Callable[..., list[InferenceGroup]]) -> None:
    options = {"name": "native", "options": {"enable_expert_parallel": True}}
    [group] = make_group(1, parallelism={"tensor": 64}, engine=options)
    with pytest.raises(Refused, match=r"tensor is 64, and of \d+ experts not every rank has one; write a tensor of"):
        plan_group(group)


def test_a_window_bounds_what_a_sequence_takes_of_any_length(
    make_group: Callable[..., list[InferenceGroup]], model_folder: Path, tmp_path: Path
) -> None:
    def plan(model: dict[str, object] | None = None, **attention: object) -> Plan:
        [group] = make_group(1, attention=attention, batching={"maxSequences": 3})
        (tmp_path / "config.json").write_text(
            json.dumps(json.loads((model_folder / "config.json").read_text()) | (model or {}))
        )
        return plan_group(group.model_copy(update={"model_folder": str(tmp_path)}))

    endless = plan(window=200, sinks=4, maxLength="unlimited")
    assert (endless.max_length, endless.window) == (UNLIMITED, Window(200, 4))
    assert endless.most_blocks == 3 * (1 + 30)  # sinks, and 199 tokens and a step's 256 anywhere in their first block
    assert plan(window=200, sinks=4, maxLength=1000).max_length == 1000
    assert plan(window=200, sinks=4, maxLength=204).window is None
    assert plan({"sliding_window": 64}).window == Window(64, 0)
    assert plan({"sliding_window": 64}, maxLength=64).window is None
    assert plan(window=300, sinks=4).max_length == 256  # the default gives way
    for said in (None, {"rope_scaling": {"rope_type": "default"}}):  # as newer files say that there is none
        stretched = plan(said, ropeScaling={"type": "linear", "factor": 2}, maxLength=512)
        assert stretched.max_length == 512
        assert stretched.config.rope_scaling == {"type": "linear", "factor": 2}
    yarn = {"rope_scaling": {"type": "yarn", "factor": 2.0}}
    dynamic = {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    for sentence, model, attention in (
        (r"without a window keys and values have no bound; write attention\.window", None, {"maxLength": "unlimited"}),
        ("sinks of 256 together or less", None, {"maxLength": "unlimited", "window": 255, "sinks": 4}),
        ("leave attention.ropeScaling out", yarn, {"ropeScaling": {"type": "linear", "factor": 2}}),
        (r"is dynamic.*write attention\.maxLength: 256 or less", dynamic, {"maxLength": 300, "window": 64}),
    ):
        with pytest.raises(Refused, match=sentence):
            plan(model, **attention)


@pytest.mark.parametrize(
    ("stored", "spec", "sentence"),
    [
        (
            Quantization("compressed-tensors", "block", (100, 128)),
            {},
            "a scale a block of 100 x 128, and the native engine takes blocks whose sides are multiples of 8",
        ),
        (
            Quantization("modelopt", "tensor"),
            {"quantization": {"weights": "bf16"}},
            "in FP8 and quantization.weights is bf16; write weights: fp8",
        ),
    ],
)
def test_weights_in_fp8_are_served_as_they_are_or_refused(
    make_group: Callable[..., list[InferenceGroup]],
    model_folder: Path,
    tmp_path: Path,
    stored: Quantization,
    spec: dict[str, object],
    sentence: str,
) -> None:
    quantize_checkpoint(model_folder, tmp_path / "models" / "fp8", stored)
    [group] = make_group(1, **spec)
    moved = group.model_copy(update={"model_folder": str(tmp_path / "models" / "fp8")})
    with pytest.raises(Refused, match=sentence):
        plan_group(moved)


def test_weights_of_another_form_are_refused_by_name(
    make_group: Callable[..., list[InferenceGroup]], model_folder: Path, tmp_path: Path
) -> None:
    quantize_checkpoint(model_folder, tmp_path / "int4", Quantization("fp8", "tensor"))
    path = tmp_path / "int4" / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    path.write_text(json.dumps(config))
    [group] = make_group(1)
    with pytest.raises(Refused, match="weights are stored as quant_method 'gptq', and FP8 alone is read"):
        plan_group(group.model_copy(update={"model_folder": str(tmp_path / "int4")}))
