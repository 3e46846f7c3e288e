"""What is known of a cluster between two commands: one JSON file in its run folder."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from arctic_cluster import addresses, process
from arctic_cluster.errors import ClusterError
from arctic_cluster.files import write_atomically
from arctic_cluster.paths import CLUSTERS


@dataclass(frozen=True)
class Ports:
    """TCP ports of the control plane: the API server's on the bridge, etcd's on loopback."""

    api: int
    etcd: int
    etcd_peer: int


@dataclass
class State:
    """One cluster: its plan, its processes by component, and whether its `up` came to its end."""

    name: str
    index: int
    nodes: int
    volumes: Path
    binaries: Path
    image: str
    ports: Ports
    boot: str
    processes: dict[str, process.Identity] = field(default_factory=dict)
    ready: bool = False

    @property
    def addresses(self) -> addresses.Addresses:
        """The cluster's names and ranges."""
        return addresses.plan(self.name, self.index, self.nodes)

    def running(self) -> bool:
        """Whether `up` came to its end, in this boot of the machine, and every process still runs."""
        return self.ready and self.boot == boot_id() and all(map(process.alive, self.processes.values()))

    def save(self) -> None:
        """Write the state to the cluster's run folder."""
        document = dataclasses.asdict(self) | {"volumes": str(self.volumes), "binaries": str(self.binaries)}
        write_atomically(_file(self.name), json.dumps(document, indent=2) + "\n")


def boot_id() -> str:
    """Names this boot of the machine: pids of another mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def run_folder(name: str) -> Path:
    """The folder of all files of the cluster `name`."""
    return CLUSTERS / name


def _file(name: str) -> Path:
    return run_folder(name) / "state.json"


def load(name: str) -> State | None:
    """The cluster's state; None when there is no such cluster."""
    file = _file(name)
    try:
        document = json.loads(file.read_text())
        return State(
            **document
            | {
                "volumes": Path(document["volumes"]),
                "binaries": Path(document["binaries"]),
                "ports": Ports(**document["ports"]),
                "processes": {k: process.Identity(**v) for k, v in document["processes"].items()},
            }
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(
            f"{file} is damaged ({error}): end the processes in the cgroup arctic-{name} and remove {file.parent}"
        ) from error


def names() -> list[str]:
    """The clusters that there are on this machine, running or not, and what a crash left of one."""
    return sorted(entry.name for entry in CLUSTERS.glob("*") if entry.is_dir() and addresses.is_name(entry.name))
