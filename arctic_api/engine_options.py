"""The options of engines that a manifest may set: an allow-list for the pinned release of each, under its own names.

What a manifest says elsewhere (lengths, batches, parallelism, formats) is no option: an engine is told each thing once.
"""

from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field

from arctic_api.common import Resource

EngineName = Literal["tensorrt-llm", "vllm", "native", "nim"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)

PipelineFormat = Literal["fp32", "bf16", "fp8"]
StepFormat = Literal["fp32", "fp8"]
RowFormat = Literal["fp32", "bf16"]


class _Options(Resource):
    # The engines' own names, which are not in camelCase.
    model_config = ConfigDict(alias_generator=None)


class MoeOptions(_Options):
    """tensorrt-llm: how experts are computed."""

    backend: Literal["CUTLASS", "DEEPGEMM", "TRTLLM"] = "CUTLASS"
    """Kernels: CUTLASS on Hopper; on Blackwell FP8 by blocks needs DEEPGEMM or TRTLLM."""
    max_num_tokens: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    """Most tokens that go through the experts at once; more go in pieces, which takes less memory."""


class CudaGraphOptions(_Options):
    """tensorrt-llm: for which numbers of decoding requests CUDA graphs are kept."""

    max_batch_size: Annotated[int, Field(ge=1, le=65536)] | None = None
    """The greatest number; batching.maxSequences if unset."""
    enable_padding: bool = True
    """Pads a batch to the next number that has a graph."""


class KvCacheOptions(_Options):
    """tensorrt-llm: room for keys and values, beyond what the manifest says of it."""

    tokens_per_block: Literal[16, 32, 64, 128] = 32
    """Tokens of a block."""
    host_cache_size: Annotated[int, Field(ge=0, le=2**50)] | None = None
    """Bytes of the host's memory, a rank, to which blocks are moved before they are forgotten."""


class SchedulerOptions(_Options):
    """tensorrt-llm: which requests share a step."""

    capacity_scheduler_policy: Literal["GUARANTEED_NO_EVICT", "MAX_UTILIZATION"] = "GUARANTEED_NO_EVICT"
    """Starts a request only where its longest answer fits, or fills the cache and computes some again."""
    context_chunking_policy: Literal["FIRST_COME_FIRST_SERVED", "EQUAL_PROGRESS"] = "FIRST_COME_FIRST_SERVED"
    """Which prompts get the step's tokens."""


class EngineOptions(_Options):
    """Options of the engine that `engine.name` names; those of the others are refused."""

    enforce_eager: bool | None = None
    """vllm: run without compiled graphs; on CPUs it does anyway."""
    optimization_level: Literal[0, 1, 2, 3] | None = None
    """vllm: how much is compiled before the first request: 0 nothing, 2 and 3 everything."""
    performance_mode: Literal["balanced", "interactivity", "throughput"] | None = None
    """vllm: what kernels and graphs are tuned for."""
    block_size: Annotated[int, Field(ge=1, le=256)] | None = None
    """vllm: tokens of a block of the cache."""
    kv_cache_memory_bytes: Annotated[int, Field(ge=1, le=1 << 42)] | None = None
    """vllm: bytes of each rank's cache, in place of what `batching.kvCache.memoryFraction` comes to."""
    cpu_offload_gb: Annotated[float, Field(ge=0, le=4096)] | None = None
    """vllm: GiB of each rank's weights that stay in the host's memory and are read from there in every step."""
    enable_expert_parallel: bool | None = None
    """vllm, native: whether the tensor ranks share out whole experts, rather than a slice of each."""
    moe_backend: (
        Literal["auto", "triton", "deep_gemm", "cutlass", "flashinfer_trtllm", "flashinfer_cutlass", "marlin"] | None
    ) = None
    """vllm: kernels of the experts."""
    attention_backend: Literal["FLASH_ATTN", "FLASHINFER", "TRITON_ATTN"] | None = None
    """vllm: kernels of attention."""
    disable_custom_all_reduce: bool | None = None
    """vllm: sum over tensor ranks by NCCL alone."""
    async_scheduling: bool | None = None
    """vllm: plan a step while the one before it runs."""
    long_prefill_token_threshold: Annotated[int, Field(ge=0, le=1_048_576)] | None = None
    """vllm: most tokens of one prompt in a step, so that short requests get by; 0 is no limit."""
    safetensors_load_strategy: Literal["lazy", "eager", "prefetch"] | None = None
    """vllm: how weights are read: mapped, whole files, or mapped and read ahead, which a network's storage needs."""
    numa_bind: bool | None = None
    """vllm: keep each rank on the cores and the memory next to its GPU."""
    pipeline_format: PipelineFormat | None = None
    """native: of hidden states between pipeline ranks: fp32 keeps all bits, the others take less of the network."""
    large_step_format: StepFormat | None = None
    """native on GPUs: what rows of steps with 128 and more are multiplied as: fp32 keeps all bits, and a row's do not
    depend on what shares its step; fp8 rounds them too, and is as fast as the card multiplies FP8 weights."""
    row_format: RowFormat | None = None
    """native on CPUs: what rows are multiplied with FP8 weights as: fp32 keeps all bits; bf16 rounds them, as most
    engines do, and is up to twice as fast; it takes a processor with AVX-512's BF16 and VBMI."""
    moe_expert_parallel_size: Annotated[int, Field(ge=1, le=64)] | None = None
    """tensorrt-llm: ranks that share out the experts, a divisor of parallelism.tensor; the rest cuts each expert."""
    moe_config: MoeOptions | None = None
    """tensorrt-llm: how experts are computed."""
    cuda_graph_config: CudaGraphOptions | None = None
    """tensorrt-llm: for which numbers of decoding requests CUDA graphs are kept."""
    kv_cache_config: KvCacheOptions | None = None
    """tensorrt-llm: room for keys and values."""
    scheduler_config: SchedulerOptions | None = None
    """tensorrt-llm: which requests share a step."""
    attn_backend: Literal["TRTLLM", "FLASHINFER"] | None = None
    """tensorrt-llm: kernels of attention."""
    allreduce_strategy: Literal["AUTO", "NCCL", "MINLATENCY", "ONESHOT", "TWOSHOT", "NCCL_SYMMETRIC"] | None = None
    """tensorrt-llm: how partial sums are added over the tensor ranks."""
    disable_overlap_scheduler: bool | None = None
    """tensorrt-llm: plan a step only when the one before is done."""
    batch_wait_timeout_ms: Annotated[int, Field(ge=0, le=60_000)] | None = None
    """tensorrt-llm: milliseconds to wait for more requests before a step."""


OPTIONS_OF: dict[EngineName, tuple[str, ...]] = {
    "vllm": (
        "enforce_eager",
        "optimization_level",
        "performance_mode",
        "block_size",
        "kv_cache_memory_bytes",
        "cpu_offload_gb",
        "enable_expert_parallel",
        "moe_backend",
        "attention_backend",
        "disable_custom_all_reduce",
        "async_scheduling",
        "long_prefill_token_threshold",
        "safetensors_load_strategy",
        "numa_bind",
    ),
    "tensorrt-llm": (
        "moe_expert_parallel_size",
        "moe_config",
        "cuda_graph_config",
        "kv_cache_config",
        "scheduler_config",
        "attn_backend",
        "allreduce_strategy",
        "disable_overlap_scheduler",
        "batch_wait_timeout_ms",
    ),
    "native": ("pipeline_format", "enable_expert_parallel", "large_step_format", "row_format"),
    "nim": (),
}
"""Names of the options that each engine takes."""
