"""The pod of a NIM: one process of ours beside NVIDIA's container, which shares its network."""

from arctic_api.world import InferenceGroup
from arctic_workers.inference.engines.nim.client import Nim
from arctic_workers.inference.engines.nim.metrics import NimCollector
from arctic_workers.inference.engines.nim.sidecar import Sidecar
from arctic_workers.inference.pod import Pod


def run(group: InferenceGroup, rank: int) -> None:
    """Be the sidecar until told to stop. Raises Refused, OSError."""
    pod = Pod(group, rank)
    sidecar = Sidecar(pod, Nim(group.ports.http, group.served_name))
    pod.registry.register(NimCollector(lambda: sidecar.figures))
    with pod.controlled(sidecar, {group.drained_path: sidecar.drained}):
        sidecar.run()
