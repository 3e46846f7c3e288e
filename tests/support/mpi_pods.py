"""Two pods as the kernel knows them, for groups whose ranks are started over SSH: namespaces, and programs from Debian.

Each has its own network, host name, process ids with our program as the first, mounts and a user who is nobody outside:
a link connects them. The programs (OpenSSH's server, Open MPI 4.1 and mpi4py) lie over `/usr`, as in an image.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from arctic_api.world import NODE_RANK_VARIABLE, WORLD_VARIABLE, InferenceGroup
from arctic_cluster import apt, shell
from arctic_cluster.files import fresh_partial
from arctic_cluster.paths import cache

PACKAGES = ("openssh-server", "openmpi-bin")
MPI4PY = "mpi4py==4.1.2"
STAND_IN = Path(__file__).with_name("tensorrt_llm_launch")
SUPPORT = Path(__file__).parent
MULTIARCH = f"{os.uname().machine}-linux-gnu"
USER = 65532
NETWORK = "10.213.77"
_C_LIBRARY = ("libc.so", "libm.so", "libdl.so", "libpthread.so", "librt.so", "libutil.so", "libresolv.so")
PASSWD = f"root:x:0:0:root:/root:/bin/sh\narctic:x:{USER}:{USER}::/tmp:/bin/sh\n"


def programs() -> Path:
    """Return a folder with `usr` and `site-packages`: downloaded once, 8 MB, and kept."""
    name = hashlib.sha256(repr((PACKAGES, MPI4PY)).encode()).hexdigest()[:12]
    final = cache() / "mpi" / name
    if not final.exists():
        work = fresh_partial(final)
        archives = work / "archives"
        (archives / "partial").mkdir(parents=True)
        options = ("--yes", "--no-install-recommends", "--reinstall", "--download-only")
        apt.get("install", *options, "-o", f"Dir::Cache::archives={archives}", *PACKAGES)
        for package in archives.glob("*.deb"):
            shell.run("dpkg-deb", "--extract", str(package), str(work))
        if (work / "lib").is_dir():  # where /lib is a link to /usr/lib
            shutil.copytree(work / "lib", work / "usr" / "lib", symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(work / "lib")
        (work / "usr" / "bin" / "mpirun").symlink_to("orterun")  # as Debian's package does when it is set up
        shutil.rmtree(work / "usr" / "lib" / MULTIARCH / "hwloc")  # ways to draw, with X11 and XML behind them
        _copy_libraries(work / "usr", work / "lib")
        target = work / "site-packages"
        shell.run(shell.uv(), "pip", "install", "--python", sys.executable, "--no-deps", "--target", target, MPI4PY)
        work.rename(final)
    return final


def _copy_libraries(tree: Path, target: Path) -> None:
    """Copy what else programs in `tree` are linked with here, but for the C library: an image may lack it."""
    target.mkdir()
    own = {"LD_LIBRARY_PATH": ":".join(library_folders(tree))}
    for program in ("sbin/sshd", "bin/ssh", "bin/orterun", "bin/orted"):
        for line in shell.run("ldd", tree / program, env=os.environ | own).splitlines():
            name, arrow, path = [*line.split(), "", ""][:3]
            if arrow == "=>" and not path.startswith(str(tree)) and not name.startswith(_C_LIBRARY):
                shutil.copy(path, target / name)


def library_folders(usr: Path | str) -> list[str]:
    """Where the programs' libraries are under what stands for /usr."""
    return [f"{usr}/lib/{MULTIARCH}", f"{usr}/lib/{MULTIARCH}/openmpi/lib"]


class MPIPod:
    """One pod, from its making until `end`."""

    def __init__(self, index: int, group: InferenceGroup, folder: Path) -> None:
        """Start our program as process 1 of what is numbered `index`; its log and its files are in `folder`."""
        self.index = index
        self.folder = folder
        self.group = group
        folder.mkdir()
        (folder / "passwd").write_text(PASSWD)
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{address(i)} {host(i)}\n" for i in (0, 1)))
        own = {
            "HOME": "/home/arctic",
            "TMPDIR": "/tmp",
            "PATH": f"{STAND_IN / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": f"{STAND_IN}:{SUPPORT}:{programs() / 'site-packages'}",
            # Debian's Open MPI looks for InfiniBand and Infinipath, which nobody has here.
            "OMPI_MCA_mca_base_component_show_load_errors": "0",
            "OMP_NUM_THREADS": "1",
            WORLD_VARIABLE: group.model_dump_json(by_alias=True),
            NODE_RANK_VARIABLE: str(index),
        }
        setting = [
            f"mount -t overlay overlay -o lowerdir={programs()}/usr:/usr /usr",
            *(f"mount --bind {folder}/{file} /etc/{file}" for file in ("passwd", "hosts")),
            # Empty folders of its own where a pod has them, and no more: /tmp may hold what the test made.
            "mkdir -p /home/arctic && mount -t tmpfs -o mode=1777 tmpfs /home/arctic",
            "mount -t tmpfs -o mode=1777 tmpfs /dev/shm",
            "mount -t proc proc /proc",
            f"hostname pod-{index}",
            f"exec unshare --user --map-user={USER} --map-group={USER} {sys.executable} -m arctic_workers.inference",
        ]
        command = ["ip", "netns", "exec", namespace(index), "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork"]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--kill-child", "sh", "-ec", "; ".join(setting)], env=own, stdout=log, stderr=log
            )

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def first_process(self) -> int:
        """Our program's process id out here."""
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)

    def signal(self, number: int) -> None:
        """Send our program a signal, as a kubelet does."""
        os.kill(self.first_process(), number)

    def processes(self, words: str) -> list[int]:
        """The ids out here of the pod's processes whose command lines begin with `words`."""
        inside = os.readlink(f"/proc/{self.first_process()}/ns/pid")
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if command.startswith(words) and os.readlink(process / "ns/pid") == inside:
                    found.append(int(process.name))
        return found

    def cut_off(self) -> None:
        """Take its network away without a word."""
        shell.run("ip", "-n", namespace(self.index), "link", "set", "eth0", "down")

    @property
    def report(self) -> dict[str, str]:
        """Its termination message."""
        content: dict[str, str] = json.loads(Path(self.group.termination_message).read_text())
        return content

    def probe(self, path: str) -> int | None:
        """The status that a probe gets, from inside the pod."""
        url = f"http://127.0.0.1:{self.group.ports.metrics}{path}"
        told = self._curl("--output", "/dev/null", "--write-out", "%{http_code}", "--max-time", "5", url)
        return int(told) or None

    def post(self, path: str, body: str) -> str:
        """What the leader answers."""
        url = f"http://127.0.0.1:{self.group.ports.http}{path}"
        return self._curl("--max-time", "60", "--header", "Content-Type: application/json", "--data", body, url)

    def _curl(self, *words: str) -> str:
        command = ["ip", "netns", "exec", namespace(self.index), "curl", "--silent", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def wait(self, limit: float = 120) -> int:
        """The exit code."""
        return self.process.wait(limit)

    def end(self) -> None:
        """Whatever it is doing."""
        self.process.kill()
        self.process.wait()


def namespace(index: int) -> str:
    """The name of a pod's network."""
    return f"arctic-mpi-{os.getpid()}-{index}"


def address(index: int) -> str:
    """The address of a pod."""
    return f"{NETWORK}.{index + 1}"


def host(index: int) -> str:
    """The name of a pod, as a headless Service gives it: what is before the first dot is no name of its own."""
    return f"pod-{index}.tiny-g0.tests.svc"


@contextmanager
def network() -> Iterator[None]:
    """Two network namespaces with a link between them, for a while."""

    def ip(*words: str) -> None:
        shell.run("ip", *words)

    pods = (0, 1)
    try:
        for index in pods:
            ip("netns", "add", namespace(index))
            ip("-n", namespace(index), "link", "set", "lo", "up")
        ip("-n", namespace(0), "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", namespace(1))
        for index in pods:
            ip("-n", namespace(index), "address", "add", f"{address(index)}/24", "dev", "eth0")
            ip("-n", namespace(index), "link", "set", "eth0", "up")
        yield
    finally:
        for index in pods:
            subprocess.run(["ip", "netns", "delete", namespace(index)], check=False)


def eventually(what: str, holds: object, limit: float = 300) -> None:
    """Wait for something in another process."""
    assert callable(holds)
    deadline = time.monotonic() + limit
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
