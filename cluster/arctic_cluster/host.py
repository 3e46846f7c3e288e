"""What a cluster changes on the machine beyond its own folder, and how that is undone.

Some paths and settings are fixed in kubelet, containerd and the CNI library, so clusters share them: settings are
remembered before the first cluster starts and put back after the last has gone.
"""

import contextlib
import json
import shutil
from pathlib import Path

from arctic_cluster import shell
from arctic_cluster.errors import ClusterError
from arctic_cluster.files import write_atomically
from arctic_cluster.paths import CLUSTERS, MACHINE

# kubelet sets these for the whole machine.
_SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
_SYSCTL = Path("/proc/sys")
_REMEMBERED = MACHINE / "settings.json"
_KUBELET = Path("/var/lib/kubelet")
_NAMESPACES = Path("/run/netns")
_CONTAINER_LOGS = Path("/var/log/containers")
_CNI_RESULTS = Path("/var/lib/cni/results")
_SHIM_SOCKETS = Path("/run/containerd/s")


def remember() -> None:
    """Note the machine's settings as they were before the first cluster."""
    if not _REMEMBERED.exists():
        before = {name: (_SYSCTL / name).read_text() for name in _SETTINGS if (_SYSCTL / name).exists()}
        folders = {"kubelet": _KUBELET.exists(), "namespaces": _NAMESPACES.exists()}
        write_atomically(_REMEMBERED, json.dumps({"settings": before, **folders}))


def restore() -> None:
    """After the last cluster has gone: put the settings back, and remove what only clusters used."""
    if any(CLUSTERS.glob("*")) or not _REMEMBERED.exists():
        return
    before = json.loads(_REMEMBERED.read_text())
    for name, value in before["settings"].items():
        (_SYSCTL / name).write_text(value)
    if not before["kubelet"]:
        shutil.rmtree(_KUBELET, ignore_errors=True)
    if not before.get("namespaces", True) and not any(_NAMESPACES.glob("*")):
        # iproute2 mounts the folder on itself.
        shell.attempt("umount", _NAMESPACES)
        _remove_if_empty(_NAMESPACES)
    for folder in (_CONTAINER_LOGS, _CNI_RESULTS, _CNI_RESULTS.parent, _SHIM_SOCKETS, _SHIM_SOCKETS.parent):
        _remove_if_empty(folder)
    _REMEMBERED.unlink()
    _remove_if_empty(CLUSTERS)
    _remove_if_empty(MACHINE)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def mounts_below(folder: Path, mountinfo: str) -> list[Path]:
    """Mount points at or below `folder` in the text of /proc/self/mountinfo, the innermost first."""
    points = (Path(line.split(" ")[4].replace("\\040", " ")) for line in mountinfo.splitlines())
    return [point for point in points if point == folder or folder in point.parents][::-1]


def unmount_below(folder: Path) -> None:
    """Unmount everything at or below `folder`; afterwards removing it touches nothing but its own files."""
    for point in mounts_below(folder, _mountinfo()):
        shell.attempt("umount", "--lazy", point)
    if left := mounts_below(folder, _mountinfo()):
        raise ClusterError(f"{left[0]} cannot be unmounted, so {folder} was not removed: unmount it and try again")


def _mountinfo() -> str:
    return Path("/proc/self/mountinfo").read_text()


def remove_traces(run: Path) -> None:
    """Remove what containerd, kubelet and the CNI library left outside the run folder."""
    for container in run.glob("node*/state/io.containerd.runtime.v2.task/*/*"):
        with contextlib.suppress(FileNotFoundError):
            Path((container / "address").read_text().removeprefix("unix://")).unlink()
        for result in _CNI_RESULTS.glob(f"*-{container.name}-*"):
            result.unlink()
    if _CONTAINER_LOGS.is_dir():
        for link in _CONTAINER_LOGS.iterdir():
            if link.is_symlink() and link.readlink().is_relative_to(run):
                link.unlink()
