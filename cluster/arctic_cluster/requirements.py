"""What the machine must have, checked before anything is done; each failure is a sentence that says how to get it.

Debian packages are installed by this module; what a package cannot give (root, a kernel's modules, disk space) is
asked for.
"""

import contextlib
import os
import shutil
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from arctic_cluster import apt, shell
from arctic_cluster.config import CNI_BINARIES
from arctic_cluster.errors import ClusterError

PYTHON = Path("/usr/bin/python3")
# torch and deepspeed have no wheels for others.
_PYTHONS = ((3, 11), (3, 12))
_LISTS_ARE_OLD = 7 * 24 * 3600
_CAP_SYS_RESOURCE = 24
_POLICY = Path("/usr/sbin/policy-rc.d")
_NO_STARTS = "#!/bin/sh\n# Of `arctic cluster`, while it installs packages.\nexit 101\n"
_FILE_SYSTEMS = Path("/proc/filesystems")
_BRIDGE_RULES = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")

# The program or file that shows that a package is there.
_PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": str(CNI_BINARIES / "bridge"),
    "iptables": "iptables",
    "iproute2": "ip",
    "mmdebstrap": "mmdebstrap",
    "procps": "sysctl",
    "util-linux": "nsenter",
    "python3": str(PYTHON),
    # Of vLLM's CPU build, whose tests run on the machine itself.
    "libnuma1": f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}/libnuma.so.1",
    # The gateway's, which the image carries; its tests run it on the machine itself.
    "haproxy": "haproxy",
}


def check_root() -> None:
    """Raise unless this is root."""
    if os.geteuid() != 0:
        raise ClusterError("a local cluster needs root, for network namespaces and mounts: run it with sudo")


def check() -> None:
    """Raise with one sentence on the first thing that is missing and that no package gives."""
    check_root()
    if not shell.have("apt-get"):
        raise ClusterError("apt-get is missing: the local cluster runs on Debian and its kin, which have containerd")
    if PYTHON.exists() and (found := python_version()) not in _PYTHONS:
        raise ClusterError(
            f"{PYTHON} is Python {found[0]}.{found[1]}; pods run it and need 3.11 or 3.12: "
            "take a machine that has it, such as Debian 12 or Ubuntu 24.04"
        )
    shell.uv()
    # Stock kernels have both as modules that nothing loads by itself, unlike those of links, rules and queues.
    if "\toverlay\n" not in _FILE_SYSTEMS.read_text():
        _load("overlay", "has no overlayfs")
    if not _BRIDGE_RULES.exists():
        _load("br_netfilter", "has no br_netfilter, without which Services are not reached")


def _load(module: str, lack: str) -> None:
    if not shell.attempt("modprobe", module):
        raise ClusterError(f"the kernel {lack}: load it (`modprobe {module}`) or boot a kernel that has it")


def python_version() -> tuple[int, int]:
    """Major and minor of the host's own Python, which is the image's too."""
    major, minor = shell.run(PYTHON, "-c", "import sys; print(*sys.version_info[:2])").split()
    return int(major), int(minor)


def check_space(folder: Path, gibibytes: int) -> None:
    """Raise when the disk of `folder` (made when missing) has less than that free."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free / (1 << 30)
    if free < gibibytes:
        raise ClusterError(f"{folder} has {free:.1f} GiB free and {gibibytes} are needed: free some on its disk")


def missing_packages() -> list[str]:
    """The Debian packages that `install` would install."""
    return [name for name, shown_by in _PACKAGES.items() if not (shell.have(shown_by) or Path(shown_by).is_file())]


def install(packages: list[str]) -> None:
    """Install Debian packages without starting the services that they bring."""
    if _lists_are_old():
        apt.get("update")
    with _no_service_starts():
        apt.get("install", "-y", "--no-install-recommends", *packages)


@contextlib.contextmanager
def _no_service_starts() -> Iterator[None]:
    """Have dpkg told that no service may start, unless the machine has a policy of its own."""
    # One with our words is what a killed run left.
    if _POLICY.exists() and _POLICY.read_text() != _NO_STARTS:
        yield
        return
    _POLICY.write_text(_NO_STARTS)
    try:
        _POLICY.chmod(0o755)
        yield
    finally:
        _POLICY.unlink()


def _lists_are_old() -> bool:
    lists = [path.stat().st_mtime for path in Path("/var/lib/apt/lists").glob("*_Packages*")]
    return not lists or time.time() - max(lists) > _LISTS_ARE_OLD


def restricts_oom_score() -> bool:
    """Whether processes here may not lower their oom_score_adj, for want of CAP_SYS_RESOURCE."""
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    return not int(effective, 16) >> _CAP_SYS_RESOURCE & 1
