"""The workers' side of many trainings in one process: the real control servers, each at its pod's address.

`python -m benchmarks.reconciling.fleet KUBECONFIG NAMESPACE`: each training whose certificates are there gets a server
that proves itself with them, and says that it trains. What the kubelet would mount is read from the API server.
"""

import sys
from typing import Any

import grpc
import grpc.aio
import uvloop

from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import Label, Ports, TrainingWorld
from arctic_operator.cluster import secret_data
from arctic_rpc import control_pb2
from arctic_workers.control.commands import Commands
from arctic_workers.control.server import OPTIONS, add_control
from arctic_workers.control.state import StateBoard
from benchmarks.reconciling.api import Watching
from benchmarks.reconciling.objects import address_of, arctic_training

SPEC = ArcticTrainingSpec.model_validate(arctic_training(0)["spec"])
TRAINS = control_pb2.WorkerState(
    phase=control_pb2.RUNNING,
    training=control_pb2.TrainingState(stage="general", step=1, tokens=4096, loss=7.5, tokens_per_second=1000.0),
)


def world_of(secret: dict[str, Any]) -> TrainingWorld:
    """Return the first attempt of the training whose Secret this is."""
    labels = secret["metadata"]["labels"]
    name, namespace = labels[Label.NAME], secret["metadata"]["namespace"]
    return TrainingWorld(
        namespace=namespace,
        name=name,
        uid=labels[Label.UID],
        first_host=address_of(name),
        spec=SPEC,
        attempt=1,
        epoch=1,
        run_folder="/",
    )


class Fleet:
    """A server a training, by the training's uid."""

    def __init__(self) -> None:
        self._servers: dict[str, Any] = {}

    async def take(self, secret: dict[str, Any]) -> None:
        """Start the server of the training whose Secret this is."""
        labels = secret["metadata"].get("labels", {})
        uid = labels.get(Label.UID)
        if uid is None or uid in self._servers:
            return
        board = StateBoard(world_of(secret))
        board.publish(TRAINS)
        server = grpc.aio.server(options=OPTIONS)
        add_control(server, board, Commands())
        data = secret_data(secret)
        credentials = grpc.ssl_server_credentials(
            [(data["tls.key"], data["tls.crt"])], root_certificates=data["ca.crt"], require_client_auth=True
        )
        server.add_secure_port(f"{address_of(labels[Label.NAME])}:{Ports().control}", credentials)
        self._servers[uid] = server
        await server.start()


async def serve(kubeconfig: str, namespace: str) -> None:
    """Serve for ever."""
    grpc.aio.init_grpc_aio()
    fleet = Fleet()
    async with Watching(kubeconfig) as watching:
        path = f"/api/v1/namespaces/{namespace}/secrets"
        async for event in watching.events(path, labels=f"{Label.MANAGED}=true"):
            if event["type"] == "ADDED":
                await fleet.take(event["object"])


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], sys.argv[2]))
