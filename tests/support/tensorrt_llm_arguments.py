"""The argument models of TensorRT-LLM, as facts: names, types, choices. No code of it.

Source: `tensorrt_llm/llmapi/llm_args.py` (`KvCacheConfig`, `MoeConfig`, `CudaGraphConfig`, `SchedulerConfig`,
`BaseLlmArgs`, `TorchLlmArgs`). The commit of release 1.2.1 itself was not at hand. Two stored versions of the file
were: one of late 2025, older than 1.2.1 (its `MoeConfig.backend` has no AUTO, its `TorchLlmArgs` a `build_config`), and
one of early 2026, newer (it speaks of release 1.3 as its own, and has `PARDDecodingConfig`). What is here is in both,
each type the narrower of the two. Both models forbid other names (`extra="forbid"`), and so do these.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, create_model

Fraction = Annotated[float, Field(ge=0, le=1)]
_CLOSED = ConfigDict(extra="forbid")


def _model(name: str, **fields: Any) -> type[BaseModel]:
    """A model of optional fields, each of exactly its type where it is given."""
    given: dict[str, Any] = {field: (kind, None) for field, kind in fields.items()}
    return create_model(name, __config__=_CLOSED, **given)


KvCacheConfig = _model(
    "KvCacheConfig",
    enable_block_reuse=bool,
    max_tokens=int | None,
    max_attention_window=Annotated[list[PositiveInt], Field(min_length=1)] | None,
    sink_token_length=int | None,
    free_gpu_memory_fraction=Fraction,
    host_cache_size=int | None,
    onboard_blocks=bool,
    cross_kv_cache_fraction=float | None,
    secondary_offload_min_priority=int | None,
    event_buffer_max_size=int,
    attention_dp_events_gather_period_ms=int,
    enable_partial_reuse=bool,
    copy_on_partial_reuse=bool,
    use_uvm=bool,
    max_gpu_total_bytes=NonNegativeInt,
    dtype=str,
    mamba_ssm_cache_dtype=Literal["auto", "float16", "bfloat16", "float32"],
    tokens_per_block=int,
)
MoeConfig = _model(
    "MoeConfig",
    backend=Literal["CUTLASS", "CUTEDSL", "WIDEEP", "TRTLLM", "DEEPGEMM", "VANILLA", "TRITON"],
    max_num_tokens=int | None,
    load_balancer=object,
    disable_finalize_fusion=bool,
    use_low_precision_moe_combine=bool,
)
CudaGraphConfig = _model(
    "CudaGraphConfig", batch_sizes=list[int] | None, max_batch_size=NonNegativeInt, enable_padding=bool
)
SchedulerConfig = _model(
    "SchedulerConfig",
    capacity_scheduler_policy=Literal["MAX_UTILIZATION", "GUARANTEED_NO_EVICT", "STATIC_BATCH"],
    context_chunking_policy=Literal["FIRST_COME_FIRST_SERVED", "EQUAL_PROGRESS"] | None,
    dynamic_batch_config=object,
)
TorchLlmArgs = _model(
    "TorchLlmArgs",
    model=str,
    tokenizer=str | None,
    tokenizer_mode=Literal["auto", "slow"],
    skip_tokenizer_init=bool,
    trust_remote_code=bool,
    tensor_parallel_size=int,
    dtype=str,
    revision=str | None,
    tokenizer_revision=str | None,
    pipeline_parallel_size=int,
    context_parallel_size=int,
    gpus_per_node=int | None,
    moe_cluster_parallel_size=int | None,
    moe_tensor_parallel_size=int | None,
    moe_expert_parallel_size=int | None,
    enable_attention_dp=bool,
    enable_lm_head_tp_in_adp=bool,
    load_format=str,
    enable_lora=bool,
    kv_cache_config=KvCacheConfig,
    enable_chunked_prefill=bool,
    guided_decoding_backend=Literal["xgrammar", "llguidance"] | None,
    iter_stats_max_iterations=int | None,
    request_stats_max_iterations=int | None,
    scheduler_config=SchedulerConfig,
    max_batch_size=int | None,
    max_input_len=int | None,
    max_seq_len=int | None,
    max_beam_width=int | None,
    max_num_tokens=int | None,
    gather_generation_logits=bool,
    num_postprocess_workers=int,
    return_perf_metrics=bool,
    orchestrator_type=Literal["rpc", "ray"] | None,
    garbage_collection_gen0_threshold=int,
    cuda_graph_config=CudaGraphConfig | None,
    disable_overlap_scheduler=bool,
    moe_config=MoeConfig,
    attn_backend=str,
    sampler_type=str,
    enable_iter_perf_stats=bool,
    enable_iter_req_stats=bool,
    print_iter_log=bool,
    perf_metrics_max_requests=NonNegativeInt,
    batch_wait_timeout_ms=NonNegativeFloat,
    batch_wait_timeout_iters=NonNegativeInt,
    batch_wait_max_tokens_ratio=Fraction,
    enable_autotuner=bool,
    enable_layerwise_nvtx_marker=bool,
    enable_min_latency=bool,
    stream_interval=PositiveInt,
    force_dynamic_quantization=bool,
    allreduce_strategy=Literal[
        "AUTO",
        "NCCL",
        "UB",
        "MINLATENCY",
        "ONESHOT",
        "TWOSHOT",
        "LOWPRECISION",
        "MNNVL",
        "NCCL_SYMMETRIC",
    ]
    | None,
    checkpoint_format=str | None,
)
