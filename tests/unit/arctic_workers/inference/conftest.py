"""A small random model with its tokenizer, and what the ranks of a local group are told."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import byte_tokenizer, write_model
from tokenizers import Tokenizer

from arctic_api.inference import ArcticInferenceSpec
from arctic_api.world import InferenceGroup, Ports
from arctic_workers.control.ports import free_ports


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The groups under test share the machine with this process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A random Arctic with an uneven vocabulary and intermediate."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_model(
        folder,
        tokenizer,
        vocab_size=tokenizer.get_vocab_size() + 1,
        hidden_size=96,
        intermediate_size=75,
        num_attention_heads=6,
        num_key_value_heads=2,
    )
    return folder


@pytest.fixture
def free_port() -> Callable[[], int]:
    return lambda: free_ports(1)[0]


MakeGroup = Callable[..., list[InferenceGroup]]


@pytest.fixture(scope="session")
def make_group(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeGroup:
    """Makes what each rank of a local group is told: the same but for its ports and its termination message."""

    def make(pipeline: int, **spec: object) -> list[InferenceGroup]:
        rendezvous, *ports = free_ports(1 + 3 * pipeline)
        folder = tmp_path_factory.mktemp("group")
        manifest = {"model": {"uri": "file:///models/tiny"}, "parallelism": {"pipeline": pipeline}, **spec}
        return [
            InferenceGroup(
                namespace="tests",
                name="tiny",
                uid="0123456789abcdef",
                hosts=["127.0.0.1"] * pipeline,
                ports=Ports(
                    control=ports[3 * rank],
                    metrics=ports[3 * rank + 1],
                    http=ports[3 * rank + 2],
                    rendezvous=rendezvous,
                ),
                tls_folder=None,
                termination_message=str(folder / f"rank{rank}.json"),
                spec=ArcticInferenceSpec.model_validate(manifest),
                group="tiny-01234-1-g0",
                revision="1",
                model_folder=str(model_folder),
            )
            for rank in range(pipeline)
        ]

    return make
