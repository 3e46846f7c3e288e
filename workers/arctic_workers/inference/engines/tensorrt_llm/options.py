"""`engine.options` for TensorRT-LLM: what a manifest may hand it under its own names, and nothing else.

The types are those of its argument models (facts: names, types, choices), narrowed to what makes sense here. Source:
`tensorrt_llm/llmapi/llm_args.py` in two stored versions, one older and one newer than release 1.2.1 (see
`tests/support/tensorrt_llm_arguments.py`); only what both have is offered.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from arctic_workers.inference.engine import Refused

RELEASE = "1.2.1"

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class MoeOptions(_Options):
    """`moe_config`: how experts are computed."""

    backend: Literal["CUTLASS", "DEEPGEMM", "TRTLLM"] = "CUTLASS"
    """Kernels: CUTLASS on Hopper; DEEPGEMM or TRTLLM on Blackwell, the only ones there for FP8 by blocks."""
    max_num_tokens: Positive | None = None
    """Most tokens that go through the experts at once; more go in pieces, which takes less memory."""
    disable_finalize_fusion: bool = False
    """Adds up a token's experts in a fixed order."""


class CudaGraphOptions(_Options):
    """`cuda_graph_config`: for which numbers of decoding requests a CUDA graph is kept."""

    batch_sizes: Annotated[list[Positive], Field(min_length=1)] | None = None
    """The numbers; instead of `max_batch_size`."""
    max_batch_size: Positive | None = None
    """The greatest number; TensorRT-LLM chooses those below."""
    enable_padding: bool = True
    """Pads a batch to the next number that has a graph."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.batch_sizes is not None and self.max_batch_size is not None:
            raise ValueError("batch_sizes and max_batch_size say the same; write one of them")
        return self


class KvCacheOptions(_Options):
    """`kv_cache_config`: room for keys and values, beyond what the manifest says of it."""

    tokens_per_block: Literal[16, 32, 64, 128] = 32
    """Tokens of a block."""
    host_cache_size: Count | None = None
    """Bytes of the host's memory, a rank, to which blocks are moved before they are forgotten."""
    enable_partial_reuse: bool = True
    """With prefix caching: blocks that match in part are shared too."""
    copy_on_partial_reuse: bool = True
    """With prefix caching: copies such a block while another request uses it."""


class SchedulerOptions(_Options):
    """`scheduler_config`: which requests share a step."""

    capacity_scheduler_policy: Literal["GUARANTEED_NO_EVICT", "MAX_UTILIZATION"] = "GUARANTEED_NO_EVICT"
    """Starts a request only where its longest answer fits, or fills the cache and computes some again."""
    context_chunking_policy: Literal["FIRST_COME_FIRST_SERVED", "EQUAL_PROGRESS"] = "FIRST_COME_FIRST_SERVED"
    """Which prompts get the step's tokens."""


class Options(_Options):
    """All that `engine.options` may say."""

    moe_expert_parallel_size: Positive | None = None
    """Ranks that share out a layer's experts, a divisor of parallelism.tensor; the rest of it cuts each expert."""
    moe_config: MoeOptions = MoeOptions()
    """How experts are computed."""
    cuda_graph_config: CudaGraphOptions | None = CudaGraphOptions()
    """CUDA graphs of decoding; null for none."""
    kv_cache_config: KvCacheOptions = KvCacheOptions()
    """Room for keys and values."""
    scheduler_config: SchedulerOptions = SchedulerOptions()
    """Which requests share a step."""
    attn_backend: Literal["TRTLLM", "FLASHINFER"] = "TRTLLM"
    """Kernels of attention."""
    allreduce_strategy: Literal["AUTO", "NCCL", "MINLATENCY", "ONESHOT", "TWOSHOT", "NCCL_SYMMETRIC"] = "AUTO"
    """How partial sums are added over the tensor ranks."""
    disable_overlap_scheduler: bool = False
    """Plans a step only when the one before is done."""
    enable_autotuner: bool = True
    """Tries tactics of kernels at the start."""
    garbage_collection_gen0_threshold: Positive = 20000
    """Python objects made before a collection."""
    batch_wait_timeout_ms: Annotated[float, Field(ge=0)] = 0.0
    """Milliseconds to wait for more requests before a step."""
    batch_wait_timeout_iters: Count = 0
    """Steps for which prompts wait for more prompts."""
    batch_wait_max_tokens_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of batching.tokenBudget at which they wait no longer."""
    print_iter_log: bool = False
    """Logs every step."""


OWNED = {
    "model": "model",
    "tensor_parallel_size": "parallelism.tensor",
    "pipeline_parallel_size": "parallelism.pipeline",
    "gpus_per_node": "parallelism.tensor",
    "dtype": "quantization.weights",
    "max_batch_size": "batching.maxSequences",
    "max_num_tokens": "batching.tokenBudget",
    "max_seq_len": "attention.maxLength",
    "kv_cache_config.free_gpu_memory_fraction": "batching.kvCache.memoryFraction",
    "kv_cache_config.dtype": "quantization.kvCache",
    "kv_cache_config.enable_block_reuse": "batching.prefixCaching",
    "kv_cache_config.max_attention_window": "attention.window",
    "kv_cache_config.sink_token_length": "attention.sinks",
}
"""Arguments that follow from fields of a manifest, and these fields."""


def read_options(options: dict[str, Any] | None) -> Options:
    """Check `engine.options`. Raises Refused, a sentence a fault, for what is unknown, owned or of another type."""
    try:
        return Options.model_validate(options or {})
    except ValidationError as error:
        raise Refused("; ".join(_sentence(fault) for fault in error.errors())) from None


def _sentence(fault: Any) -> str:
    # Pydantic puts the name of a type into the place of a fault inside a union.
    path = [str(part) for part in fault["loc"] if not str(part).startswith(("CudaGraphOptions", "constrained-"))]
    where, argument = ".".join(["engine.options", *path]), ".".join(path)
    if fault["type"] == "extra_forbidden":
        if field := OWNED.get(argument):
            return f"{where} follows from {field} of the manifest; write it there"
        names = ", ".join(sorted(_fields(path[:-1])))
        return f"{where} is not handed to TensorRT-LLM {RELEASE} from here; of {names} write what you need"
    return f"{where} is {fault['input']!r}: {fault['msg'].removeprefix('Value error, ').lower()}"


def _fields(path: list[str]) -> set[str]:
    """Names of the options in one of their groups."""
    group: Any = Options()
    for part in path:
        group = getattr(group, part)
    return set(type(group).model_fields)
