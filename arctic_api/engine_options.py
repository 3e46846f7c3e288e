"""The options of engines that a manifest may set: an allow-list for the pinned release of each, under its own names.

What a manifest says elsewhere (lengths, batches, parallelism, formats) is no option: an engine is told each thing once.
"""

from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field

from arctic_api.common import Resource

EngineName = Literal["tensorrt-llm", "vllm", "native", "nim"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


class EngineOptions(Resource):
    """Options of the engine that `engine.name` names; those of the others are refused."""

    # The engines' own names, which are not in camelCase.
    model_config = ConfigDict(alias_generator=None)

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
    """vllm: whether the tensor ranks share out whole experts, rather than a slice of each."""
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
    "tensorrt-llm": (),
    "native": (),
    "nim": (),
}
"""Names of the options that each engine takes."""
