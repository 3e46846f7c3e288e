"""The options of engines that a manifest may set: an allow-list for the pinned release of each, under its own names.

What a manifest says elsewhere (lengths, batches, parallelism, formats) is no option: an engine is told each thing once.
"""

from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field

from arctic_api.common import Resource

EngineName = Literal["tensorrt-llm", "vllm", "native", "nim"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


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
    """vllm: run without compiled graphs."""
    block_size: Annotated[int, Field(ge=1, le=256)] | None = None
    """vllm: tokens of a block of the cache."""
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
    "vllm": ("enforce_eager", "block_size"),
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
    "native": (),
    "nim": (),
}
"""Names of the options that each engine takes."""
