"""From a manifest to TensorRT-LLM's arguments, and what is refused on the way."""

import itertools
import sys
import types
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from tensorrt_llm_arguments import TorchLlmArgs

from arctic_api.engine_options import OPTIONS_OF, EngineOptions
from arctic_api.inference import ArcticInferenceSpec
from arctic_model.config import ArcticConfig
from arctic_workers.inference.engine import Refused
from arctic_workers.inference.engines.tensorrt_llm.arguments import check_arguments, plan_arguments
from arctic_workers.inference.engines.tensorrt_llm.checkpoint import Format, Stored

PUBLISHED = ArcticConfig()


def plan(stored: Stored, **fields: Any) -> dict[str, Any]:
    manifest = {
        "model": {"uri": "file:///models/arctic"},
        "engine": {"name": "tensorrt-llm"},
        "parallelism": {"tensor": 8, "pipeline": 2},
        **fields,
    }
    return plan_arguments(ArcticInferenceSpec.model_validate(manifest), stored, "/tmp/arctic/model")


def holds(weights: Format = "fp8-block", kv_cache: str | None = None, **changes: Any) -> Stored:
    return Stored(Path("/models/arctic"), PUBLISHED.replace(**changes), weights, kv_cache)


def test_the_published_model_in_fp8_on_two_nodes_of_eight() -> None:
    assert plan(
        holds(),
        batching={"tokenBudget": 4096, "maxSequences": 128, "kvCache": {"memoryFraction": 0.85}, "prefixCaching": True},
        quantization={"weights": "fp8", "kvCache": "fp8"},
    ) == {
        "model": "/tmp/arctic/model",
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "dtype": "bfloat16",
        "tensor_parallel_size": 8,
        "pipeline_parallel_size": 2,
        "gpus_per_node": 8,
        "moe_expert_parallel_size": 8,
        "moe_tensor_parallel_size": 1,
        "max_batch_size": 128,
        "max_num_tokens": 4096,
        "max_seq_len": 4096,
        "max_input_len": 4096,
        "max_beam_width": 1,
        "enable_chunked_prefill": True,
        "kv_cache_config": {
            "free_gpu_memory_fraction": 0.85,
            "dtype": "fp8",
            "enable_block_reuse": True,
            "max_attention_window": None,
            "tokens_per_block": 32,
            "host_cache_size": None,
        },
        "moe_config": {"backend": "CUTLASS", "max_num_tokens": None},
        "cuda_graph_config": {"max_batch_size": 128, "enable_padding": True},
        "scheduler_config": {
            "capacity_scheduler_policy": "GUARANTEED_NO_EVICT",
            "context_chunking_policy": "FIRST_COME_FIRST_SERVED",
        },
        "enable_iter_perf_stats": True,
    }


def test_what_options_say_takes_the_place_of_what_is_left_out() -> None:
    arguments = plan(
        holds("plain"),
        engine={
            "name": "tensorrt-llm",
            "options": {
                "moe_config": {"backend": "DEEPGEMM", "max_num_tokens": 8192},
                "cuda_graph_config": {"max_batch_size": 32, "enable_padding": False},
                "kv_cache_config": {"tokens_per_block": 64},
                "moe_expert_parallel_size": 4,
                "batch_wait_timeout_ms": 25,
            },
        },
        quantization={"weights": "bf16"},
        attention={"window": 1024},
    )
    assert arguments["moe_config"] == {"backend": "DEEPGEMM", "max_num_tokens": 8192}
    assert arguments["cuda_graph_config"] == {"max_batch_size": 32, "enable_padding": False}
    assert (arguments["moe_expert_parallel_size"], arguments["moe_tensor_parallel_size"]) == (4, 2)
    assert arguments["batch_wait_timeout_ms"] == 25
    assert arguments["kv_cache_config"]["tokens_per_block"] == 64
    assert arguments["kv_cache_config"]["max_attention_window"] == [1024]
    assert arguments["kv_cache_config"]["dtype"] == "auto"


@pytest.mark.parametrize(
    ("fields", "stored", "sentence"),
    [
        ({"attention": {"sinks": 4, "window": 1024}}, holds(), "attention.sinks: TensorRT-LLM's PyTorch backend"),
        ({"attention": {"maxLength": "unlimited"}}, holds(), "ends at a length; write a number"),
        ({"attention": {"maxLength": 8192}}, holds(), "maxLength is 8192 and the model reaches 4096 positions"),
        ({"attention": {"ropeScaling": {"type": "dynamic", "factor": 2}}}, holds(), "type: yarn or type: linear"),
        ({}, holds("plain"), "quantize /models/arctic NEW_FOLDER --layout fp8 --scales block; or write bf16"),
        ({"quantization": {"weights": "bf16"}}, holds(), "holds FP8 weights; write quantization.weights: fp8"),
        ({"quantization": {"weights": "fp32"}}, holds("plain"), "no fp32; write bf16 or fp8"),
        ({"quantization": {"weights": "bf16", "kvCache": "fp32"}}, holds("plain"), "no fp32"),
        ({}, holds("fp8-tensor", "FP8"), "write quantization.kvCache: fp8"),
        (
            {"parallelism": {"tensor": 3}},
            holds(),
            "tensor is 3 .* 56 heads and 8 key-value heads; write one of 1, 2, 4, 8, 56",
        ),
        ({"parallelism": {"pipeline": 36}}, holds(), "pipeline is 36 and the model has 35 layers; write at most 35"),
        ({"parallelism": {"tensor": 8}}, holds(moe_layer_frequency=2), r"leaves a rank intermediate_size \(608\)"),
        (
            {},
            holds("fp8-tensor", moe_layer_frequency=3, intermediate_size=4860),
            "does not divide intermediate_size 4860",
        ),
        ({}, holds("fp8-tensor", num_local_experts=3, intermediate_size=4859), "no degree fits; write another tensor"),
        ({"batching": {"tokenBudget": 16}}, holds(), "tokenBudget is 16 .* at least 32 tokens"),
        ({"batching": {"tokenBudget": 128}, "attention": {"window": 512}}, holds(), "at least 256 tokens"),
        ({"batching": {"prefixCaching": True}, "attention": {"window": 512}}, holds(), "prefixCaching with a window"),
    ],
)
def test_what_it_cannot_do_is_refused_with_what_to_write(fields: Any, stored: Stored, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        plan(stored, **fields)


def test_fp8_blocks_are_never_cut() -> None:
    options = {"name": "tensorrt-llm", "options": {"moe_expert_parallel_size": 2}}
    with pytest.raises(Refused, match=r"the experts' intermediate_size \(1216\), no multiple of 128"):
        plan(holds(), engine=options)
    assert plan(holds("fp8-tensor"), engine=options)["moe_tensor_parallel_size"] == 4
    with pytest.raises(Refused, match=r"moe_expert_parallel_size is 3 .* write one of 1, 2, 4, 8"):
        plan(holds(), engine={"name": "tensorrt-llm", "options": {"moe_expert_parallel_size": 3}})
    # More ranks than key-value heads: each is held twice, and its scales are not.
    with pytest.raises(Refused, match="key-value heads x head_dim"):
        plan(holds(num_attention_heads=64, hidden_size=8192), parallelism={"tensor": 16})
    assert plan(holds("fp8-tensor", num_attention_heads=64, hidden_size=8192), parallelism={"tensor": 16})


def leaves(model: type[BaseModel], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every option with its type, those in groups by their path."""
    found: dict[tuple[str, ...], Any] = {}
    for name, field in model.model_fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        groups = [kind for kind in kinds if issubclass(kind, BaseModel)]
        found |= leaves(groups[0], (*path, name)) if groups else {(*path, name): field.annotation}
    return found


def test_every_choice_of_an_option_is_one_of_tensorrt_llms() -> None:
    facts = leaves(TorchLlmArgs)
    for path, kind in leaves(EngineOptions).items():
        if path[0] not in OPTIONS_OF["tensorrt-llm"]:
            continue
        assert path in facts, path
        for part in (kind, *get_args(kind)):
            for choice in get_args(part) if get_origin(part) is Literal else ():
                TypeAdapter(facts[path]).validate_python(choice, strict=True)


def test_arguments_are_of_tensorrt_llms_types() -> None:
    """As its two neighbours have them; the installed release judges for itself at the start."""
    windows: list[dict[str, Any]] = [{}, {"window": 512}, {"ropeScaling": {"type": "yarn", "factor": 4}}]
    graphs: list[Any] = [None, {}, {"max_batch_size": 8}]
    stores: list[tuple[str, Format]] = [("fp8", "fp8-block"), ("fp8", "fp8-tensor"), ("bf16", "plain")]
    for attention, graph, (weights, form), tensor in itertools.product(windows, graphs, stores, (1, 8)):
        arguments = plan(
            holds(form),
            attention=attention,
            engine={"name": "tensorrt-llm", "options": {"cuda_graph_config": graph}},
            quantization={"weights": weights, "kvCache": "fp8"},
            parallelism={"tensor": tensor},
        )
        TorchLlmArgs(**arguments)
        with pytest.raises(ValidationError):
            TorchLlmArgs(**arguments, sink_tokens=4)


def test_the_installed_release_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_llm", types.SimpleNamespace(__version__="9.9"))
    monkeypatch.setitem(sys.modules, "tensorrt_llm.llmapi", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "tensorrt_llm.llmapi.llm_args", types.SimpleNamespace(TorchLlmArgs=TorchLlmArgs))
    arguments = plan(holds())
    check_arguments(arguments)
    with pytest.raises(Refused, match=r"TensorRT-LLM 9.9 refuses its arguments \(max_seq_len: .*\): this is for 1.2.1"):
        check_arguments({**arguments, "max_seq_len": "long"})
