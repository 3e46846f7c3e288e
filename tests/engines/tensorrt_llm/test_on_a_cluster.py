"""A group of TensorRT-LLM on the local cluster, from its manifest on: the programs are real, TensorRT-LLM a stand-in.

The cluster's image has no sshd and no MPI: they come by a volume, with TensorRT-LLM's stand-in beside them, and the
manifest's environment says where they are.
"""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import mpi_pods
import pytest
from models import write_plain_model
from objects import Objects, is_ready

from arctic_api import API_VERSION
from arctic_api.world import Ports
from arctic_cluster import Cluster
from arctic_cluster.image import STABLE
from arctic_cluster.paths import CORPUS

pytestmark = pytest.mark.timeout(1200)

KIND, NAME = "ArcticInference", "tiny"
MOUNT = "/var/lib/arctic/corpus"
FOLDER = "tensorrt-llm"
PATIENCE = 600.0


@pytest.fixture(scope="module")
def programs(operator: Cluster) -> Iterator[str]:
    """Where pods see the programs, the stand-in and a model."""
    folder = operator.volumes / CORPUS / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    made = mpi_pods.programs()
    for name in ("usr", "lib", "site-packages"):
        shutil.copytree(made / name, folder / name, symlinks=True, ignore_dangling_symlinks=True)
    shutil.copytree(mpi_pods.STAND_IN, folder / "stand-in", ignore=shutil.ignore_patterns("__pycache__"))
    for module in ("tensorrt_llm_stand_ins.py", "tensorrt_llm_arguments.py"):
        shutil.copy(mpi_pods.SUPPORT / module, folder / "stand-in")
    write_plain_model(folder / "model")
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444))
    yield f"{MOUNT}/{FOLDER}"
    shutil.rmtree(folder)


def manifest(programs: str) -> dict[str, Any]:
    usr = f"{programs}/usr"
    libraries = mpi_pods.library_folders(usr)
    variables = {
        "PATH": f"{programs}/stand-in/bin:{usr}/bin:{usr}/sbin:/opt/arctic/bin:/usr/bin:/bin",
        "LD_LIBRARY_PATH": ":".join([*libraries, f"{programs}/lib"]),
        "OPAL_PREFIX": usr,
        "PMIX_INSTALL_PREFIX": f"{libraries[0]}/pmix2",
        "OMPI_MCA_mca_base_component_show_load_errors": "0",
        "PYTHONPATH": f"{programs}/stand-in:{programs}/site-packages",
        "OMP_NUM_THREADS": "1",
    }
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": NAME},
        "spec": {
            "model": {"uri": f"file://{programs}/model"},
            # Not the default image of that engine, which is nowhere here.
            "engine": {"name": "tensorrt-llm", "image": STABLE},
            "quantization": {"weights": "bf16", "kvCache": "bf16"},
            "parallelism": {"tensor": 2, "pipeline": 2},
            "rollout": {"drainTimeout": "20s"},
            "template": {
                "environment": [{"name": name, "value": value} for name, value in variables.items()],
                "volumes": [{"claimName": CORPUS, "mountPath": MOUNT}],
            },
        },
    }


def ranks_of(objects: Objects, pod: dict[str, Any]) -> list[dict[str, Any]]:
    """What the ranks told of themselves in the log of pod 0."""
    log = objects.kubectl("logs", pod["metadata"]["name"])
    _, mark, told = log.rpartition("RANKS ")
    assert mark, log
    found: list[dict[str, Any]]
    found, _ = json.JSONDecoder().raw_decode(told)
    return found


def lives(pods: list[dict[str, Any]]) -> list[str]:
    """The containers that pods are in now."""
    return [status["containerID"] for pod in pods for status in pod["status"].get("containerStatuses", ())]


def test_a_group_comes_up_over_two_pods_and_is_remade_as_one(programs: str, operator: Cluster, namespace: str) -> None:
    objects = Objects(operator, namespace)
    objects.apply(manifest(programs))
    objects.state(KIND, NAME, "Ready", limit=PATIENCE)
    first, later = objects.pods(NAME, KIND)
    assert first["spec"]["nodeName"] != later["spec"]["nodeName"]
    names = [pod["metadata"]["name"] for pod in (first, later)]
    ranks = ranks_of(objects, first)
    assert [(rank["rank"], rank["size"], rank["host"]) for rank in ranks] == [
        (0, 4, names[0]),
        (1, 4, names[0]),
        (2, 4, names[1]),
        (3, 4, names[1]),
    ]
    url = f"http://{first['status']['podIP']}:{Ports().http}/v1/completions"
    body = {"model": NAME, "prompt": "The operator", "max_tokens": 4, "temperature": 0}
    assert httpx.post(url, json=body, trust_env=False, timeout=60).json()["usage"]["completion_tokens"] == 4

    objects.kubectl("delete", "pod", names[1])  # which is told to stop, and tells pod 0

    def ended() -> dict[str, Any] | None:
        status = objects.get("pod", names[0])["status"]["containerStatuses"][0]
        told: list[dict[str, Any]] = [status[state].get("terminated", {}) for state in ("state", "lastState")]
        return next((end for end in told if end.get("containerID") == lives([first])[0]), None)

    end = objects.eventually("pod 0 has ended the group", ended)
    assert end["exitCode"] == 0
    assert json.loads(end["message"])["outcome"] == "succeeded"

    def remade() -> list[dict[str, Any]] | None:
        pods = objects.pods(NAME, KIND)
        new = len(pods) == 2 and all(map(is_ready, pods)) and not set(lives(pods)) & set(lives([first, later]))
        return pods if new else None

    pods = objects.eventually("both pods are new and ready", remade, PATIENCE)
    assert len(ranks_of(objects, pods[0])) == 4
    objects.kubectl("delete", KIND, NAME)
    objects.eventually("nothing is left", lambda: not objects.pods(NAME, KIND))
