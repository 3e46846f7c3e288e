"""What all pods of a world do together, at the size of a large one: their meeting, and what they leave for each other.

The agents and the store are torch's; no rank is started.
"""

import json
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed import TCPStore
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.launcher.api import LaunchConfig
from torch.distributed.run import config_from_args, parse_args

from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import Ports, TrainingWorld
from arctic_workers.control.ports import free_ports
from arctic_workers.training.hang.board import Board
from arctic_workers.training.supervisor import launch_command

PODS = 512
EACH = 8
FILES = 4 * PODS


@pytest.fixture(autouse=True)
def open_files() -> Iterator[None]:
    """Both ends of all connections are in this process, which many machines let have 1024 files."""
    soft, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        pytest.skip(f"a process of this machine may open {hard} files at most")
    if soft != resource.RLIM_INFINITY and soft < FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def world(spec_of: Callable[..., ArcticTrainingSpec]) -> TrainingWorld:
    spec = spec_of([{"tokens": 100, "sequenceLength": 16}], 16)
    degrees = spec.parallelism.model_copy(update={"nodes": PODS, "processes_per_node": EACH})
    [port] = free_ports(1)
    return TrainingWorld(
        namespace="ns",
        name="t",
        uid="uid",
        first_host="127.0.0.1",
        ports=Ports(rendezvous=port),
        spec=spec.model_copy(update={"parallelism": degrees}),
        attempt=1,
        epoch=1,
        run_folder="/run",
    )


def test_all_pods_meet_at_the_first_ones_address_and_each_has_the_ranks_of_its_place(world: TrainingWorld) -> None:
    command = list(launch_command(world, 0, Path("/logs")))
    for node in (1, PODS - 1):  # nothing else in it is a pod's own
        other = [f"--node-rank={node}" if word == "--node-rank=0" else word for word in command]
        assert list(launch_command(world, node, Path("/logs"))) == other
    config, _, _ = config_from_args(parse_args(command[command.index("arctic_workers.training.launch") + 1 :]))
    with ThreadPoolExecutor(PODS) as pods:
        groups = list(pods.map(lambda node: met(config, node), range(PODS)))
    for node, ranks in enumerate(groups):
        assert ranks == [(node * EACH + local, PODS * EACH) for local in range(EACH)]


def met(config: LaunchConfig, node: int) -> list[tuple[int, int]]:
    """Rank, and ranks in all, of each process that torchrun would start on a pod."""
    place = RendezvousParameters(
        config.rdzv_backend,
        config.rdzv_endpoint,
        config.run_id,
        config.min_nodes,
        config.max_nodes,
        **config.rdzv_configs | {"rank": node},
    )
    spec = WorkerSpec("default", config.nproc_per_node, get_rendezvous_handler(place), entrypoint="true")
    agent = LocalElasticAgent(spec, DefaultLogsSpecs())
    agent._rendezvous(agent.get_worker_group())
    return [(worker.global_rank, worker.world_size) for worker in agent.get_worker_group().workers]


def test_while_all_pods_wait_each_hears_of_all_others() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    boards = [Board(f"127.0.0.1:{store.port}", node, PODS) for node in range(PODS)]
    with ThreadPoolExecutor(PODS) as pods:
        list(pods.map(lambda node: boards[node].talk(json.dumps({"node": node}), listen=False), range(PODS)))
        heard = list(pods.map(lambda board: board.talk(None, listen=True), boards))
    expected = {node: json.dumps({"node": node}) for node in range(PODS)}
    assert all(each == expected for each in heard)
