"""The image that every pod runs: a small Debian (or the host's own distribution) with Python and a few tools.

It is made from the host's package sources with mmdebstrap and written in Docker's archive form, which containerd
imports: no container registry is asked. Its default command sleeps, so that it is the pods' sandbox, too.
"""

import hashlib
import json
import os
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

from arctic_cluster import shell
from arctic_cluster.errors import ClusterError
from arctic_cluster.files import fresh_partial
from arctic_cluster.paths import cache

# g++ and the headers: torch and DeepSpeed build their CPU kernels where they run. libnuma1: vLLM's are linked with it.
PACKAGES = (
    "ca-certificates",
    "g++",
    "haproxy",
    "iproute2",
    "libc6-dev",
    "libnuma1",
    "ninja-build",
    "python3",
    "python3-dev",
)
REPOSITORY = "docker.io/arctic/base"
STABLE = f"{REPOSITORY}:local"
USER = 65532
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
# Programs ask who they are, so the number has a name; its home is where a pod can write.
_ADD_USER = (
    f'chroot "$1" groupadd --gid {USER} arctic'
    f' && chroot "$1" useradd --uid {USER} --gid {USER} --no-create-home --home-dir /tmp arctic'
)


def _release() -> dict[str, str]:
    pairs = (line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return {key: value.strip('"') for key, value in pairs}


def _command(suite: str, target: Path | str) -> list[str]:
    return [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=tar",
        f"--include={','.join(PACKAGES)}",
        '--aptopt=APT::Install-Recommends "false"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT),
        f"--customize-hook={_ADD_USER}",
        suite,
        str(target),
        "-",
    ]


def tag() -> str:
    """The hash that names the image: of all that it is made from but the packages' versions."""
    recipe = json.dumps([_command(_release()["VERSION_CODENAME"], ""), _config("")])
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def reference() -> str:
    """The image's full name; `STABLE` names the same image without saying which."""
    return f"{REPOSITORY}:{tag()}"


def archive() -> Path:
    """Where the image's archive is, or will be."""
    return cache() / "images" / tag() / "base.tar"


def build() -> None:
    """Make the image, two minutes of downloading and unpacking packages."""
    release = _release()
    final = archive()
    work = fresh_partial(final.parent)
    work.mkdir()
    layer = work / "layer.tar"
    shell.run(*_command(release["VERSION_CODENAME"], layer), stdin=_sources(release["ID"]))
    write_archive(layer, work / final.name, [reference(), STABLE])
    layer.unlink()
    work.rename(final.parent)


def _sources(distribution: str) -> str:
    """The host's package sources of its own distribution, one line each; those of third parties are left out."""
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)"
    targets = shell.run("apt-get", "indextargets", "--format", form, "Created-By: Packages").splitlines()
    sources = select_sources(targets, distribution)
    if not sources:
        raise ClusterError(f"apt knows no source of {distribution}: add one to /etc/apt and run apt-get update")
    return sources


def select_sources(targets: list[str], distribution: str) -> str:
    """Sources.list lines from "URI release component origin" ones, of the origin `distribution` alone."""
    fields = sorted({tuple(line.split()) for line in targets})
    own = [field for field in fields if len(field) == 4 and field[3].lower() == distribution]
    return "".join(f"deb {uri} {release} {component}\n" for uri, release, component, _ in own)


def _config(layer_digest: str) -> dict[str, Any]:
    return {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        "os": "linux",
        "config": {
            "User": f"{USER}:{USER}",
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["sleep", "infinity"],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        "history": [{"created_by": "arctic cluster build"}],
    }


def write_archive(layer: Path, target: Path, references: list[str]) -> None:
    """Write a one-layer image in the form of `docker save` under the names `references`."""
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config = json.dumps(_config(digest)).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": references, "Layers": [f"{digest}.tar"]}]
    with tarfile.open(target, "w") as tar:
        for name, data in ((config_name, config), ("manifest.json", json.dumps(manifest).encode())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
        tar.add(layer, arcname=f"{digest}.tar")
