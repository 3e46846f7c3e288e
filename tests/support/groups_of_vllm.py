"""What the ranks of a local group of vLLM are told, over a model whose sizes vLLM's kernels for CPUs have."""

from pathlib import Path
from typing import Any

from models import byte_tokenizer, write_model

from arctic_api.inference import ArcticInferenceSpec
from arctic_api.world import InferenceGroup, Ports
from arctic_workers.control.ports import free_ports


def write_model_for_vllm(folder: Path) -> None:
    """Write a random Arctic with heads of 32, shared out evenly by two."""
    tokenizer = byte_tokenizer()
    sizes: dict[str, Any] = {
        "hidden_size": 192,
        "intermediate_size": 64,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    }
    write_model(folder, tokenizer, vocab_size=tokenizer.get_vocab_size() + 1, **sizes)


def make_group(model: Path, folder: Path, *, tensor: int = 1, pipeline: int = 1) -> list[InferenceGroup]:
    """Return what each pod is told; their reports go to `folder`."""
    rendezvous, *ports = free_ports(1 + 3 * pipeline)
    manifest: dict[str, Any] = {
        "model": {"uri": "file:///models/tiny"},
        "engine": {"name": "vllm"},
        "quantization": {"weights": "fp32", "kvCache": "fp32"},
        "parallelism": {"tensor": tensor, "pipeline": pipeline},
        "batching": {"maxSequences": 4, "tokenBudget": 64},
    }
    return [
        InferenceGroup(
            namespace="tests",
            name="tiny",
            uid="0123456789abcdef",
            hosts=["127.0.0.1"] * pipeline,
            ports=Ports(
                control=ports[3 * rank], metrics=ports[3 * rank + 1], http=ports[3 * rank + 2], rendezvous=rendezvous
            ),
            tls_folder=None,
            termination_message=str(folder / f"rank{rank}.json"),
            spec=ArcticInferenceSpec.model_validate(manifest),
            group="tiny-01234-1-g0",
            revision="1",
            model_folder=str(model),
        )
        for rank in range(pipeline)
    ]
