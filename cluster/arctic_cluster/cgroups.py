"""The cluster's cgroups: one below the root of every hierarchy, holding the daemons and each node's pods.

They are the precise answer to "which processes are this cluster's": containers and their shims are in them, whoever
started them. Cgroup v1 is what has been run; the v2 branch follows the kernel's documentation and has not been.
"""

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from arctic_cluster import process
from arctic_cluster.errors import ClusterError

DAEMONS = "daemons"


@dataclass(frozen=True)
class Hierarchy:
    """A mounted cgroup hierarchy; `controllers` are a v1 mount's, and empty for v2."""

    mount: Path
    version: int
    controllers: frozenset[str]


def parse_mounts(mountinfo: str) -> tuple[Hierarchy, ...]:
    """The cgroup hierarchies in the text of /proc/self/mountinfo."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            controllers = frozenset(options.split(",")) - {"rw", "ro"} if kind == "cgroup" else frozenset[str]()
            found.append(Hierarchy(Path(before.split(" ")[4]), 2 if kind == "cgroup2" else 1, controllers))
    return tuple(found)


def hierarchies() -> tuple[Hierarchy, ...]:
    """The hierarchies of this machine."""
    found = parse_mounts(Path("/proc/self/mountinfo").read_text())
    if not found:
        raise ClusterError("no cgroup hierarchy is mounted: mount one (`mount -t cgroup2 none /sys/fs/cgroup`)")
    return found


def is_v2(mounted: Iterable[Hierarchy]) -> bool:
    """Whether v2 rules: a v2 mount beside v1 ones (the "hybrid" layout) controls nothing."""
    return all(hierarchy.version == 2 for hierarchy in mounted)


def create(root: str, children: Iterable[str]) -> None:
    """Make `root` and its children in every hierarchy, able to hold processes and limits."""
    for hierarchy in hierarchies():
        top = hierarchy.mount / root
        if hierarchy.version == 2 and is_v2(hierarchies()):
            _delegate(hierarchy.mount)
        _make(top, hierarchy)
        for child in children:
            _make(top / child, hierarchy)


def _make(folder: Path, hierarchy: Hierarchy) -> None:
    folder.mkdir(exist_ok=True)
    if hierarchy.version == 2:
        # Processes live in leaves only, so the daemons' cgroup delegates nothing.
        if folder.name != DAEMONS:
            _delegate(folder)
        return
    if "cpuset" in hierarchy.controllers:
        # A v1 cpuset starts empty and refuses processes until it is filled.
        for file in ("cpuset.cpus", "cpuset.mems"):
            (folder / file).write_text((folder.parent / file).read_text())


def _delegate(folder: Path) -> None:
    controllers = (folder / "cgroup.controllers").read_text().split()
    if controllers:
        (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))


def daemon_folders(root: str) -> list[Path]:
    """The cgroups that a daemon of the cluster joins."""
    return [hierarchy.mount / root / DAEMONS for hierarchy in hierarchies()]


def kill_all(root: str) -> None:
    """Kill every process below `root`, until none is left."""
    deadline = time.monotonic() + 30
    while members := _members(root):
        if time.monotonic() > deadline:
            pids = sorted(member.pid for member in members)
            raise ClusterError(f"processes {pids} in the cgroup {root} do not die: look at them with ps")
        process.kill(members)


def _members(root: str) -> list[process.Identity]:
    pids: set[int] = set()
    for hierarchy in hierarchies():
        for file in (hierarchy.mount / root).rglob("cgroup.procs"):
            # Threaded and dying cgroups refuse to be read.
            with contextlib.suppress(OSError):
                pids.update(int(pid) for pid in file.read_text().split())
    return [identity for pid in pids if (identity := process.identify(pid))]


def remove(root: str) -> None:
    """Remove the cgroups below and with `root`; their processes must be gone."""
    for hierarchy in hierarchies():
        top = hierarchy.mount / root
        if top.exists():
            folders = sorted((path for path in top.rglob("*") if path.is_dir()), key=lambda p: -len(p.parts))
            for folder in [*folders, top]:
                _remove_one(folder)


def _remove_one(folder: Path) -> None:
    # The kernel lets go of a killed process's cgroup a moment after the process is gone.
    for _ in range(100):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise ClusterError(f"the cgroup {folder} cannot be removed: something still runs in it")
