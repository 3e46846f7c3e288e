"""Starts worlds of ranks, one after the other, from one process that has imported what takes seconds to import.

Arguments: the folder to work in, and the worlds, each as `RANKS:PART,PART`. Ends with 1 as soon as a rank fails.
"""

import os
import runpy
import sys
from pathlib import Path

import deepspeed  # noqa: F401  (imported once for all ranks)

import arctic_workers.training.rank  # noqa: F401
from arctic_workers.control.lifeline import die_with_parent
from arctic_workers.control.ports import free_ports

SCRIPT = Path(__file__).with_name("two_ranks.py")


def start(folder: str, ranks: int, rank: int, port: int, parts: list[str]) -> int:
    """Fork a rank that runs the parts; returns its process."""
    process = os.fork()
    if process:
        return process
    die_with_parent()
    log = os.open(Path(folder, f"log.{parts[0]}.{rank}"), os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    sys.argv = [str(SCRIPT), folder, *parts]
    runpy.run_path(str(SCRIPT), run_name="__main__")
    sys.exit(0)


def main() -> None:
    """Run each world to its end."""
    folder, *worlds = sys.argv[1:]
    for world in worlds:
        ranks, _, parts = world.partition(":")
        [port] = free_ports(1)
        processes = [start(folder, int(ranks), rank, port, parts.split(",")) for rank in range(int(ranks))]
        if any(os.waitpid(process, 0)[1] for process in processes):
            sys.exit(1)


if __name__ == "__main__":
    main()
