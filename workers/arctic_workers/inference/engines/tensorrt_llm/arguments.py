"""From a manifest to TensorRT-LLM's arguments: a pure function, and the check by TensorRT-LLM's own types at the start.

`LLM(**plan_arguments(...))` on the leader; TensorRT-LLM hands them to the other ranks. Source: `TorchLlmArgs` in
`tensorrt_llm/llmapi/llm_args.py`, of which only what an older and a newer neighbour of release 1.2.1 both have is used.
"""

from math import gcd
from typing import Any

from pydantic import ValidationError

from arctic_api.engine_options import (
    OPTIONS_OF,
    CudaGraphOptions,
    EngineOptions,
    KvCacheOptions,
    MoeOptions,
    SchedulerOptions,
)
from arctic_api.inference import ArcticInferenceSpec
from arctic_model.config import ArcticConfig
from arctic_workers.inference.engine import Refused
from arctic_workers.inference.engines.tensorrt_llm.checkpoint import (
    BLOCK,
    Stored,
    how_to_quantise,
    longest,
    served_config,
)

RELEASE = "1.2.1"
WINDOWED_CHUNK = 256
"""Least tokens of a prompt's piece where attention has a window: one tile of its kernel."""


def plan_arguments(spec: ArcticInferenceSpec, stored: Stored, folder: str) -> dict[str, Any]:
    """Say what `LLM` is made with, for a checkpoint that `prepare_folder` put into `folder`. Pure. Raises Refused."""
    options = spec.engine.options or EngineOptions()
    cache, graphs = options.kv_cache_config or KvCacheOptions(), options.cuda_graph_config or CudaGraphOptions()
    served = served_config(stored, spec.attention)
    window, length = served["sliding_window"], longest(spec.attention, stored.config)
    _check_weights(spec, stored)
    _check_degrees(spec, stored.config)
    experts = _expert_parallel(spec.parallelism.tensor, stored.config, options)
    if stored.weights == "fp8-block":
        _check_blocks(spec.parallelism.tensor, spec.parallelism.tensor // experts, stored.config)
    _check_batching(spec, cache, window)
    return {
        "model": folder,
        # Token ids go in and come out, and the tokenizer is the HTTP API's.
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "dtype": "bfloat16",
        "tensor_parallel_size": spec.parallelism.tensor,
        "pipeline_parallel_size": spec.parallelism.pipeline,
        "gpus_per_node": spec.parallelism.tensor,
        "moe_expert_parallel_size": experts,
        "moe_tensor_parallel_size": spec.parallelism.tensor // experts,
        "max_batch_size": spec.batching.max_sequences,
        "max_num_tokens": spec.batching.token_budget,
        "max_seq_len": length,
        "max_input_len": length,
        "max_beam_width": 1,
        "enable_chunked_prefill": True,
        "kv_cache_config": {
            "free_gpu_memory_fraction": spec.batching.kv_cache.memory_fraction,
            "dtype": "fp8" if spec.quantization.kv_cache == "fp8" else "auto",
            "enable_block_reuse": spec.batching.prefix_caching,
            "max_attention_window": None if window is None else [window],
            **cache.model_dump(),
        },
        "moe_config": (options.moe_config or MoeOptions()).model_dump(),
        "cuda_graph_config": {
            "max_batch_size": graphs.max_batch_size or spec.batching.max_sequences,
            "enable_padding": graphs.enable_padding,
        },
        "scheduler_config": (options.scheduler_config or SchedulerOptions()).model_dump(),
        # What get_stats() then tells is what our metrics come from.
        "enable_iter_perf_stats": True,
        **options.model_dump(include=_PLAIN, exclude_none=True),
    }


_PLAIN = {name for name in OPTIONS_OF["tensorrt-llm"] if not name.endswith("_config") and not name.startswith("moe_")}
"""Options that are arguments as they stand."""


def check_arguments(arguments: dict[str, Any]) -> None:
    """Let TensorRT-LLM's own types judge the arguments, before any rank loads. Needs TensorRT-LLM and a GPU.

    Raises Refused where they judge otherwise: the installed release is then not the one that this was written for.
    """
    import tensorrt_llm
    from tensorrt_llm.llmapi.llm_args import TorchLlmArgs

    try:
        TorchLlmArgs(**arguments)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise Refused(
            f"TensorRT-LLM {tensorrt_llm.__version__} refuses its arguments ({faults}): this is for {RELEASE}; "
            "write an engine.image with that release, or leave out the engine.options named"
        ) from None


def _check_weights(spec: ArcticInferenceSpec, stored: Stored) -> None:
    weights, kv_cache = spec.quantization.weights, spec.quantization.kv_cache
    if "fp32" in (weights, kv_cache):
        raise Refused("quantization: TensorRT-LLM's attention takes bf16 and fp8, no fp32; write bf16 or fp8")
    if weights == "fp8" and stored.weights == "plain":
        raise Refused(
            f"quantization.weights is fp8 and {stored.folder} is not quantised: TensorRT-LLM loads FP8 weights and "
            f"makes none; name the folder that this makes: {how_to_quantise(stored.folder)}; or write bf16"
        )
    if weights != "fp8" and stored.weights != "plain":
        raise Refused(
            f"quantization.weights is {weights} and {stored.folder} holds FP8 weights; write quantization.weights: fp8"
        )
    if stored.kv_cache == "FP8" and kv_cache != "fp8":
        raise Refused(f"{stored.folder} asks for keys and values in FP8; write quantization.kvCache: fp8")


def _check_degrees(spec: ArcticInferenceSpec, config: ArcticConfig) -> None:
    tensor, pipeline = spec.parallelism.tensor, spec.parallelism.pipeline
    heads, grouped = config.num_attention_heads, config.num_key_value_heads
    # Fewer key-value heads than ranks are held more than once.
    if heads % tensor or (grouped % tensor and tensor % grouped) or config.hidden_size % tensor:
        fitting = [
            degree
            for degree in range(1, gcd(heads, config.hidden_size) + 1)
            if heads % degree == 0 == config.hidden_size % degree and (grouped % degree == 0 or degree % grouped == 0)
        ]
        raise Refused(
            f"parallelism.tensor is {tensor} and the model has {heads} heads and {grouped} key-value heads; write one "
            f"of {', '.join(map(str, fitting))}"
        )
    if dense_layers(config) and config.intermediate_size % tensor:
        raise Refused(
            f"parallelism.tensor is {tensor} and does not divide intermediate_size {config.intermediate_size}"
        )
    if pipeline > config.num_hidden_layers:
        layers = config.num_hidden_layers
        raise Refused(f"parallelism.pipeline is {pipeline} and the model has {layers} layers; write at most {layers}")


def dense_layers(config: ArcticConfig) -> int:
    """Number of layers without experts."""
    return config.num_hidden_layers - config.expert_layers


def _expert_parallel(tensor: int, config: ArcticConfig, options: EngineOptions) -> int:
    """Ranks that share out the experts: as many as fit, as whole experts keep any scale and any kernel's tile whole."""
    experts, asked = config.num_local_experts, options.moe_expert_parallel_size
    fitting = [degree for degree in range(1, tensor + 1) if tensor % degree == 0 == experts % degree]
    fitting = [degree for degree in fitting if config.intermediate_size % (tensor // degree) == 0]
    if not config.expert_layers:
        return tensor
    if not fitting or asked not in (None, *fitting):
        raise Refused(
            f"engine.options.moe_expert_parallel_size is {asked} with parallelism.tensor {tensor} and {experts} "
            f"experts of intermediate_size {config.intermediate_size}; "
            + (f"write one of {', '.join(map(str, fitting))}" if fitting else "no degree fits; write another tensor")
        )
    return asked or fitting[-1]


def _check_blocks(tensor: int, cut: int, config: ArcticConfig) -> None:
    """A rank's part of every FP8 matrix must be whole blocks: scales are cut like the values."""
    grouped = config.num_key_value_heads * config.head_dim
    parts = {"hidden_size": config.hidden_size // tensor, "key-value heads x head_dim": grouped // tensor}
    if config.expert_layers:
        parts["the experts' intermediate_size"] = config.intermediate_size // cut
    if dense_layers(config):
        parts["intermediate_size"] = config.intermediate_size // tensor
    if uneven := [f"{what} ({size})" for what, size in parts.items() if size % BLOCK or not size]:
        raise Refused(
            f"parallelism.tensor {tensor} leaves a rank {' and '.join(uneven)}, no multiple of {BLOCK}, the block of "
            "the FP8 weights; write a smaller parallelism.tensor, or for the experts a greater moe_expert_parallel_size"
        )


def _check_batching(spec: ArcticInferenceSpec, cache: KvCacheOptions, window: int | None) -> None:
    if window is not None and spec.batching.prefix_caching:
        raise Refused(
            "batching.prefixCaching with a window: what left the window is gone from the cache, so no later prompt can "
            "share it; leave prefixCaching or attention.window out"
        )
    least = max(cache.tokens_per_block, WINDOWED_CHUNK if window is not None else 1)
    if spec.batching.token_budget < least:
        raise Refused(
            f"batching.tokenBudget is {spec.batching.token_budget} and a prompt's piece has at least {least} tokens; "
            f"write {least} or more"
        )
