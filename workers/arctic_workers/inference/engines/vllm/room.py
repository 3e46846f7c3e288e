"""A pod of vLLM: the first serves over its engine, the others hold the ranks that the engine asks."""

import os
import socket
from collections.abc import Mapping
from importlib.util import find_spec

from arctic_api.world import InferenceGroup
from arctic_workers.control.cores import available_cores
from arctic_workers.control.memory import available_memory
from arctic_workers.control.ports import is_loopback
from arctic_workers.inference.engines.vllm.arguments import CPU, arguments, cpu_environment, environment
from arctic_workers.inference.leader import lead
from arctic_workers.inference.model import read_model
from arctic_workers.inference.pod import Pod

# vLLM itself is imported once its variables are set.
if find_spec("vllm") is None:
    raise ModuleNotFoundError("No module named 'vllm'", name="vllm")


def run(group: InferenceGroup, rank: int) -> None:
    """Be one pod. Raises Refused, EngineError, RuntimeError."""
    model = read_model(group)
    _set(environment(group, _address(group, rank)))
    cpu = None if _on_gpu() else CPU(available_memory(), available_cores())
    if cpu:
        _set(cpu_environment(group, cpu))
    told = arguments(group, rank, model, cpu)
    pod = Pod(group, rank)
    if rank:
        from arctic_workers.inference.engines.vllm.follower import Follower

        follower = Follower(pod, told)
        with pod.controlled(follower):
            follower.run()
        return
    from arctic_workers.inference.engines.vllm.engine import VLLMEngine

    engine = VLLMEngine(
        pod.group,
        told,
        on_loss=pod.lose,
        on_stop=pod.stop.request,
        beat=pod.heartbeat.beat,
    )
    lead(pod, engine, model.folder, model.config.vocab_size)


def _set(variables: Mapping[str, str]) -> None:
    """Set what the manifest's own environment does not."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _on_gpu() -> bool:
    from vllm.platforms import current_platform

    return not current_platform.is_cpu()


def _address(group: InferenceGroup, rank: int) -> str:
    """The address of this pod that its peers reach: never the one of a route to the outside, which vLLM would take."""
    host = group.hosts[rank]
    return host if is_loopback(host) else str(socket.getaddrinfo(socket.gethostname(), None)[0][4][0])
