"""Where the traces of a worker hang: in its object's trace, under what the operator has told of making its world."""

import os
import socket
from collections.abc import Mapping

from arctic_api import tracing
from arctic_api.tracing import Place
from arctic_api.world import TRACES_VARIABLE, EvaluationWorld, TrainingWorld, World


def begin_traces(service: str, world: World, environment: Mapping[str, str]) -> None:
    """Record what this process does for a world, if its environment says where to send that."""
    about = {
        "service.instance.id": f"{socket.gethostname()}/{os.getpid()}",
        "k8s.namespace.name": world.namespace,
        "arctic.kind": world.kind,
        "arctic.name": world.name,
    }
    tracing.begin(service, environment.get(TRACES_VARIABLE, ""), about)


def made_by_operator(world: World) -> Place:
    """Return the span under which all of a world is; of local processes, which nobody made, the trace alone."""
    if world.tls_folder is None:
        return Place.of(world.uid)
    if isinstance(world, TrainingWorld):
        return Place.of(world.uid, str(world.attempt))
    return Place.of(world.uid, world.job if isinstance(world, EvaluationWorld) else world.group)
