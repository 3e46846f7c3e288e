"""What vLLM is told for each pod, whole: nothing here needs vLLM."""

from pathlib import Path
from typing import Any

import pytest

from arctic_api.engine_options import OPTIONS_OF
from arctic_api.inference import ArcticInferenceSpec
from arctic_api.world import InferenceGroup, Ports
from arctic_model.config import ArcticConfig
from arctic_workers.inference.engine import Refused
from arctic_workers.inference.engines.vllm.arguments import CPU, arguments, cpu_environment, environment
from arctic_workers.inference.model import Model

MODEL = Model(Path("/models/arctic"), ArcticConfig.preset("arctic"), quantized=False)
SMALL = Model(Path("/models/tiny"), ArcticConfig.preset("arctic-tiny").replace(max_position_embeddings=256), False)
ON_PODS = [f"arctic-01234-1-g0-{rank}.arctic-01234-1-g0.default.svc" for rank in range(2)]
GIB = 1 << 30


def group(hosts: list[str], **spec: Any) -> InferenceGroup:
    manifest = {"model": {"uri": "file:///models/arctic"}, "engine": {"name": "vllm"}} | spec
    manifest.setdefault("parallelism", {"tensor": 8, "pipeline": len(hosts)})
    return InferenceGroup(
        namespace="default",
        name="arctic",
        uid="0123456789abcdef",
        hosts=hosts,
        ports=Ports(),
        spec=ArcticInferenceSpec.model_validate(manifest),
        group="arctic-01234-1-g0",
        revision="1",
        model_folder="/models/arctic",
    )


def test_two_pods_of_eight_gpus_serve_the_published_model_in_fp8() -> None:
    world = group(
        ON_PODS,
        quantization={"weights": "fp8", "kvCache": "fp8"},
        batching={"tokenBudget": 4096, "maxSequences": 128, "prefixCaching": True, "kvCache": {"memoryFraction": 0.92}},
        attention={"maxLength": 4000},
    )
    assert arguments(world, 1, MODEL) == {
        "model": "/models/arctic",
        "load_format": "safetensors",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": "bfloat16",
        "quantization": "fp8",
        "kv_cache_dtype": "fp8",
        "max_logprobs": 20,
        "disable_log_stats": True,
        "max_num_seqs": 128,
        "max_num_batched_tokens": 4096,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": True,
        "gpu_memory_utilization": 0.92,
        "max_model_len": 4000,
        "tensor_parallel_size": 8,
        "pipeline_parallel_size": 2,
        "distributed_executor_backend": "mp",
        "nnodes": 2,
        "node_rank": 1,
        "master_addr": ON_PODS[0],
        "master_port": 29500,
        "cpu_distributed_timeout_seconds": 86400,
    }


def test_pods_differ_in_their_rank_alone() -> None:
    world = group(ON_PODS)
    first, second = (arguments(world, rank, MODEL) for rank in range(2))
    assert {name for name in first if first[name] != second[name]} == {"node_rank"}


def test_a_pod_waits_for_one_that_loads_for_longer() -> None:
    """All ranks meet again when they have loaded: half an hour apart at most, if vLLM is told nothing."""
    waited = arguments(group(ON_PODS), 0, MODEL)["cpu_distributed_timeout_seconds"]
    assert environment(group(ON_PODS), "10.0.0.7")["VLLM_ENGINE_READY_TIMEOUT_S"] == str(waited)


def test_one_pod_with_one_gpu_meets_nobody() -> None:
    told = arguments(group(ON_PODS[:1], parallelism={"tensor": 1, "pipeline": 1}), 0, SMALL)
    assert not {"nnodes", "master_addr", "distributed_executor_backend", "cpu_distributed_timeout_seconds"} & set(told)
    assert "TORCHELASTIC_USE_AGENT_STORE" not in environment(group(ON_PODS[:1]), "10.0.0.7")


def test_a_checkpoint_that_names_its_format_is_taken_as_it_is_stored() -> None:
    stored = Model(MODEL.folder, MODEL.config, quantized=True)
    assert "quantization" not in arguments(group(ON_PODS), 0, stored)
    with pytest.raises(Refused, match=r"quantization\.weights is bf16 and the checkpoint in /models/arctic is stored"):
        arguments(group(ON_PODS, quantization={"weights": "bf16"}), 0, stored)


def test_a_step_carries_a_token_of_each_sequence() -> None:
    told = arguments(group(ON_PODS, batching={"tokenBudget": 32, "maxSequences": 64}), 0, MODEL)
    assert (told["max_num_seqs"], told["max_num_batched_tokens"]) == (32, 32)


def test_options_reach_vllm_under_their_own_names() -> None:
    given = {"block_size": 32, "enable_expert_parallel": True, "async_scheduling": False}
    told = arguments(group(ON_PODS, engine={"name": "vllm", "options": given}), 0, MODEL)
    assert {name: told[name] for name in OPTIONS_OF["vllm"] if name in told} == given


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"parallelism": {"tensor": 3, "pipeline": 2}}, "tensor is 3"),
        ({"parallelism": {"tensor": 8, "pipeline": 40}}, "pipeline is 40 and the model has 35 layers"),
        ({"attention": {"maxLength": 5000}}, r"attention\.maxLength is 5000 and the model has 4096 positions"),
    ],
)
def test_what_the_model_can_not_do_is_refused_by_its_field(spec: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        arguments(group(ON_PODS, **spec), 0, MODEL)


def test_in_pods_ranks_talk_at_the_pods_own_address_and_nobody_asks_the_outside() -> None:
    assert environment(group(ON_PODS), "10.244.1.5") == {
        "VLLM_HOST_IP": "10.244.1.5",
        "VLLM_PLUGINS": "arctic,arctic-orphans",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_ENGINE_READY_TIMEOUT_S": "86400",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def test_local_processes_stay_on_loopback() -> None:
    variables = environment(group(["127.0.0.1"] * 2), "127.0.0.1")
    assert {variables[name] for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")} == {"lo"}
    assert variables["VLLM_HOST_IP"] == "127.0.0.1"


def test_without_a_gpu_the_cache_is_what_all_sequences_need() -> None:
    """256 positions are two blocks of 128 tokens; vLLM keeps one more."""
    config = SMALL.config
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    spec = {"quantization": {"weights": "fp32", "kvCache": "fp32"}, "batching": {"maxSequences": 4}}
    alone = group(["127.0.0.1"], parallelism={"tensor": 1, "pipeline": 1}, **spec)
    told = arguments(alone, 0, SMALL, CPU(memory=8 * GIB, cores=4))
    assert (told["kv_cache_memory_bytes"], told["enforce_eager"]) == (9 * 128 * token, True)
    assert (told["dtype"], told["kv_cache_dtype"]) == ("float32", "auto")
    halves = group(["127.0.0.1"] * 2, parallelism={"tensor": 1, "pipeline": 2}, **spec)
    told = arguments(halves, 1, SMALL, CPU(memory=8 * GIB, cores=4))
    assert told["kv_cache_memory_bytes"] == 9 * 128 * token // 2
    assert told["compilation_config"] == {"mode": "DYNAMO_TRACE_ONCE", "backend": "eager"}


def test_without_a_gpu_the_cache_is_no_more_than_the_pods_of_the_machine_have() -> None:
    spec = {
        "quantization": {"weights": "bf16"},
        "batching": {"maxSequences": 65536, "kvCache": {"memoryFraction": 0.5}},
    }
    parallelism = {"tensor": 2, "pipeline": 2}
    told = arguments(group(["127.0.0.1"] * 2, parallelism=parallelism, **spec), 0, SMALL, CPU(GIB, cores=4))
    # Four ranks share a GiB; half of what is left to each.
    assert GIB // 8 - (8 << 20) < told["kv_cache_memory_bytes"] <= GIB // 8


def test_without_a_gpu_ranks_share_the_cores() -> None:
    world = group(["127.0.0.1"], parallelism={"tensor": 2, "pipeline": 1})
    assert cpu_environment(world, CPU(GIB, cores=5)) == {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "2"}


def test_without_a_gpu_several_pods_do_without_eager_execution() -> None:
    eager = group(ON_PODS, engine={"name": "vllm", "options": {"enforce_eager": True}})
    with pytest.raises(Refused, match=r"engine\.options\.enforce_eager: .*: leave it out"):
        arguments(eager, 0, MODEL, CPU(GIB, cores=2))
