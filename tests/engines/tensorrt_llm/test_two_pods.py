"""TensorRT-LLM over two pods: our supervisors, real `sshd`, `mpirun` and MPI, and a stand-in of TensorRT-LLM.

What is shown is the launch and the ends of a group, on machines without a GPU; nothing of TensorRT-LLM itself.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mpi_pods
import pytest
from models import write_plain_model
from mpi_pods import MPIPod, eventually

from arctic_api.inference import ArcticInferenceSpec
from arctic_api.world import InferenceGroup, Ports
from arctic_operator.logins import new_login

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="makes network namespaces, which takes root"),
    pytest.mark.timeout(900),
]

MakePods = Callable[..., list[MPIPod]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def login(tmp_path: Path) -> Path:
    folder = tmp_path / "login"
    folder.mkdir()
    for name, content in new_login().items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o440)
    return folder


@pytest.fixture
def start(model: Path, login: Path, tmp_path: Path) -> Iterator[MakePods]:
    """Starts pods of one group of two."""
    started: list[MPIPod] = []

    def make(*indices: int, **spec: object) -> list[MPIPod]:
        manifest = {
            "model": {"uri": f"file://{model}"},
            "engine": {"name": "tensorrt-llm"},
            "quantization": {"weights": "bf16"},
            "parallelism": {"tensor": 1, "pipeline": 2},
            "rollout": {"drainTimeout": "20s"},
        }
        group = InferenceGroup(
            namespace="tests",
            name="tiny",
            uid="0123456789abcdef",
            hosts=[mpi_pods.host(0), mpi_pods.host(1)],
            ports=Ports(),
            tls_folder=None,
            spec=ArcticInferenceSpec.model_validate(manifest | spec),
            group="tiny-01234-1-g0",
            revision="1",
            model_folder=str(model),
            login_folder=str(login),
        )
        for index in indices:
            report = {"termination_message": str(tmp_path / f"report-{index}.json")}
            started.append(MPIPod(index, group.model_copy(update=report), tmp_path / f"pod-{index}"))
        return started

    with mpi_pods.network():
        try:
            yield make
        finally:
            for pod in started:
                pod.end()
                print(f"--- pod {pod.index}\n{pod.log}")


def all_ready(pods: list[MPIPod]) -> bool:
    assert all(pod.process.poll() is None for pod in pods)
    return all(pod.probe("/readyz") == 200 for pod in pods)


def ranks_of(pod: MPIPod) -> list[dict[str, Any]]:
    (line,) = [line for line in pod.log.splitlines() if line.startswith("RANKS ")]
    found: list[dict[str, Any]] = json.loads(line.removeprefix("RANKS "))
    return found


def test_ranks_run_in_their_pods_and_the_group_answers_and_ends_in_order(start: MakePods) -> None:
    pods = start(0, 1, parallelism={"tensor": 2, "pipeline": 2})
    eventually("all pods are ready", lambda: all_ready(pods))
    ranks = ranks_of(pods[0])
    assert [(rank["rank"], rank["size"], rank["host"]) for rank in ranks] == [
        (0, 4, "pod-0"),
        (1, 4, "pod-0"),
        (2, 4, "pod-1"),
        (3, 4, "pod-1"),
    ]
    for rank in ranks:
        assert rank["user"] == mpi_pods.USER
        assert rank["models"] == ["ArcticForCausalLM"]  # known before a task came
        assert rank["node"] == rank["host"].removeprefix("pod-")  # the environment of its own pod
        assert json.loads(rank["config"])["architectures"] == ["ArcticForCausalLM"]
    body = json.dumps({"model": "tiny", "prompt": "The operator", "max_tokens": 5, "temperature": 0})
    answer = json.loads(pods[0].post("/v1/completions", body))
    assert answer["usage"]["completion_tokens"] == 5
    pods[1].signal(signal.SIGTERM)  # either may be told
    assert [pod.wait() for pod in pods] == [0, 0]
    assert [pod.report["outcome"] for pod in pods] == ["succeeded", "succeeded"]


def kill_rank(pods: list[MPIPod]) -> None:
    (rank,) = pods[1].processes("python3 -m tensorrt_llm.llmapi.mgmn_worker_node")
    os.kill(rank, signal.SIGKILL)


def kill_leader(pods: list[MPIPod]) -> None:
    told = pods[0].processes(f"{sys.executable} -m arctic_workers.inference")
    (leader,) = [process for process in told if b"ARCTIC_TENSORRT_LLM_LEADER=" in environment_of(process)]
    os.kill(leader, signal.SIGKILL)


def environment_of(process: int) -> bytes:
    return Path(f"/proc/{process}/environ").read_bytes()


def kill_later_pod(pods: list[MPIPod]) -> None:
    pods[1].signal(signal.SIGKILL)


def cut_off_later_pod(pods: list[MPIPod]) -> None:
    pods[1].cut_off()


@pytest.mark.parametrize("fault", [kill_rank, kill_leader, kill_later_pod, cut_off_later_pod])
def test_when_a_part_is_lost_every_pod_of_the_group_ends_and_says_so(
    start: MakePods, fault: Callable[[list[MPIPod]], None]
) -> None:
    pods = start(0, 1)
    eventually("all pods are ready", lambda: all_ready(pods))
    fault(pods)
    codes = [pod.wait() for pod in pods]
    assert codes[0] == 1
    assert pods[0].report["outcome"] == "failed"
    if fault is not kill_later_pod:
        assert codes[1] == 1
        assert "pod 0" in pods[1].report["message"]


def test_a_pod_that_waits_for_the_others_ends_when_it_is_told_to(start: MakePods) -> None:
    (pod,) = start(0)
    eventually("it waits", lambda: "Waiting for" in pod.log)
    assert (pod.probe("/livez"), pod.probe("/readyz")) == (200, 503)
    pod.signal(signal.SIGTERM)
    assert pod.wait() == 0
    (_, later) = start(1)
    eventually("it waits", lambda: "Waiting for" in later.log)
    later.signal(signal.SIGTERM)
    assert later.wait() == 0


def test_a_stranger_with_another_key_gets_nowhere(start: MakePods, login: Path) -> None:
    (later,) = start(1)
    eventually("it waits", lambda: "Waiting for" in later.log)
    for name, content in new_login().items():
        (login / name).chmod(0o600)
        (login / name).write_bytes(content)
    _, stranger = start(0)
    eventually("it is turned away", lambda: "Host key verification failed" in stranger.log)
    assert "All pods" not in stranger.log
