"""TensorRT-LLM over two pods: our supervisors, real `sshd`, `mpirun` and MPI, and a stand-in of TensorRT-LLM.

What is shown is the launch and the ends of a group, on machines without a GPU; nothing of TensorRT-LLM itself.
"""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import mpi_pods
import pytest
from mpi_pods import MPIPod, eventually
from tiny_model import save_tiny_model

from arctic_api.inference import ArcticInferenceSpec
from arctic_api.world import InferenceGroup, Ports
from arctic_operator.logins import new_login

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="makes network namespaces, which takes root")

PARALLELISM = {"tensor": 2, "pipeline": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def login(tmp_path: Path) -> Path:
    folder = tmp_path / "login"
    folder.mkdir()
    for name, content in new_login().items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o440)
    return folder


@pytest.fixture
def pods(model: Path, login: Path, tmp_path: Path) -> Iterator[list[MPIPod]]:
    """Two pods of one group."""
    group = InferenceGroup(
        namespace="tests",
        name="tiny",
        uid="0123456789abcdef",
        hosts=[mpi_pods.address(0), mpi_pods.address(1)],
        ports=Ports(),
        tls_folder=None,
        spec=ArcticInferenceSpec.model_validate(
            {
                "model": {"uri": f"file://{model}"},
                "engine": {"name": "tensorrt-llm"},
                "quantization": {"weights": "bf16"},
                "parallelism": PARALLELISM,
                "rollout": {"drainTimeout": "20s"},
            }
        ),
        group="tiny-01234-1-g0",
        revision="1",
        model_folder=str(model),
        login_folder=str(login),
    )
    with mpi_pods.network():
        started = []
        for index in (0, 1):
            report = {"termination_message": str(tmp_path / f"report-{index}.json")}
            started.append(MPIPod(index, group.model_copy(update=report), tmp_path / f"pod-{index}", {}))
        try:
            yield started
        finally:
            for pod in started:
                pod.end()
                print(f"--- pod {pod.index}\n{pod.log}")


def report(pod: MPIPod) -> dict[str, str]:
    content: dict[str, str] = json.loads(Path(pod.group.termination_message).read_text())
    return content


def all_ready(pods: list[MPIPod]) -> bool:
    assert all(pod.process.poll() is None for pod in pods)
    return all(pod.probe("/readyz") == 200 for pod in pods)


def test_ranks_run_in_their_pods_and_the_group_answers_and_ends_in_order(pods: list[MPIPod]) -> None:
    eventually("all pods are ready", lambda: all_ready(pods))
    body = json.dumps({"model": "tiny", "prompt": "The operator", "max_tokens": 5, "temperature": 0})
    answer = json.loads(pods[0].post("/v1/completions", body))
    assert answer["usage"]["completion_tokens"] == 5
    pods[1].signal(signal.SIGTERM)  # either may be told
    assert [pod.wait() for pod in pods] == [0, 0]
    assert [report(pod)["outcome"] for pod in pods] == ["succeeded", "succeeded"]
