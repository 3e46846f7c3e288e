"""Rank 0: takes tasks from the LLM API's process and has every rank do them, over MPI."""

import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.connection import Listener
from typing import Any

from mpi4py import MPI
from mpi4py.futures import MPICommExecutor
from tensorrt_llm_stand_ins import MODELS


def load(folder: str) -> dict[str, Any]:
    """Tell who and where a rank is, and what it knows and reads."""
    MPI.COMM_WORLD.barrier()
    with open(f"{folder}/config.json") as file:
        config = file.read()
    return {
        "rank": MPI.COMM_WORLD.rank,
        "size": MPI.COMM_WORLD.size,
        "host": socket.gethostname(),
        "user": os.getuid(),
        "models": sorted(MODELS),
        "arguments": sys.orig_argv,
        "config": config,
        "node": os.environ.get("ARCTIC_NODE_RANK"),
        "offline": os.environ.get("HF_HUB_OFFLINE"),
    }


def one_pass(_: None) -> None:
    """A pass that needs all ranks."""
    MPI.COMM_WORLD.barrier()


TASKS: dict[str, Callable[[Any], Any]] = {"load": load, "pass": one_pass}


def main() -> None:
    host, port = os.environ["TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR"].removeprefix("tcp://").split(":")
    key = bytes.fromhex(os.environ["TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY"])
    with Listener((host, int(port)), authkey=key) as listener, MPICommExecutor(MPI.COMM_WORLD) as executor:
        assert executor is not None
        session = listener.accept()
        # The published one waits for ever for an API that is gone, and so does this.
        while True:
            try:
                order = session.recv()
            except EOFError:
                session = listener.accept()
                continue
            if order is None:
                return
            name, argument = order
            task = TASKS[name]
            others = [executor.submit(task, argument) for _ in range(MPI.COMM_WORLD.size - 1)]
            results = [task(argument), *(other.result() for other in others)]
            session.send(sorted(results, key=lambda told: told["rank"]) if name == "load" else None)


if __name__ == "__main__":
    # Tasks are sent by name, and this module has another one while it runs.
    from tensorrt_llm.llmapi import mgmn_leader_node

    mgmn_leader_node.main()
