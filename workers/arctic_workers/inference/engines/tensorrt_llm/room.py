"""A pod of TensorRT-LLM: pod 0 starts all ranks and, in rank 0's process, the leader; the others let it in."""

import os
from importlib.util import find_spec
from pathlib import Path

from arctic_api.world import InferenceGroup
from arctic_workers.inference.engine import Refused
from arctic_workers.inference.engines.tensorrt_llm.arguments import plan_arguments
from arctic_workers.inference.engines.tensorrt_llm.checkpoint import (
    prepare_folder,
    read_stored,
    served_config,
)
from arctic_workers.inference.engines.tensorrt_llm.engine import TensorRTEngine
from arctic_workers.inference.engines.tensorrt_llm.first_pod import FirstPod
from arctic_workers.inference.engines.tensorrt_llm.later_pod import LaterPod
from arctic_workers.inference.engines.tensorrt_llm.launch import LEADER_VARIABLE, Place
from arctic_workers.inference.engines.tensorrt_llm.login import new_place, write_files
from arctic_workers.inference.leader import lead
from arctic_workers.inference.pod import Pod

# TensorRT-LLM itself is imported by the ranks alone.
if find_spec("tensorrt_llm") is None:
    raise ModuleNotFoundError("No module named 'tensorrt_llm'", name="tensorrt_llm")


def run(group: InferenceGroup, rank: int) -> None:
    """Be one pod, or the leader's process in pod 0. Raises Refused, EngineError, OSError."""
    if folder := os.environ.get(LEADER_VARIABLE):
        _lead(group, Place(Path(folder)))
        return
    if len(group.hosts) > 1 and group.login_folder is None:
        raise Refused(
            "parallelism.pipeline: local processes have no key to log in to each other; write pipeline: 1, or apply "
            "the manifest to a cluster"
        )
    pod = Pod(group, rank)
    place = new_place(os.environ)
    stored = read_stored(Path(group.locate(group.model_folder)))
    # What can't be is refused here, in every pod, before anything waits for anybody.
    plan_arguments(group.spec, stored, str(place.model))
    prepare_folder(stored, place.model, served_config(stored, group.spec.attention))
    if rank == 0:
        FirstPod(pod, place).run(os.environ)
        return
    later = LaterPod(pod, place)
    with pod.controlled(later):
        later.run(group.login_folder or "", os.environ)


def _lead(group: InferenceGroup, place: Place) -> None:
    # When a rank fails, mpirun ends its groups of processes; what becomes of this one is for the supervisor to say.
    os.setsid()
    write_files({place.leader: str(os.getpid())})
    pod = Pod(group, 0)
    stored = read_stored(Path(group.locate(group.model_folder)))
    engine = TensorRTEngine(
        plan_arguments(group.spec, stored, str(place.model)),
        beat=pod.heartbeat.beat,
        on_failure=pod.lose,
    )
    lead(pod, engine, stored.folder, stored.config.vocab_size)
