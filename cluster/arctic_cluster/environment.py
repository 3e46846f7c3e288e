"""The Python environment that pods mount at /opt/arctic: the project and what it needs, as the lock file says.

It is made for the host's own /usr/bin/python3, which is the image's too, so its `bin/python` works in a pod. The
dependencies are installed and compiled once for each lock file; each version of our sources is a copy of that in hard
links, with our packages added.
"""

import os
import tomllib
from pathlib import Path

from arctic_cluster import requirements, shell
from arctic_cluster.files import files_under, fresh_partial, prune, texts, tree_hash
from arctic_cluster.paths import CHECKOUT, CLUSTERS, cache

MOUNT = "/opt/arctic"
_EXTRAS = ("operator", "training", "inference")
_KEPT = 3
# GiB, as measured: with uv's cache on the same disk only what is compiled is new, the rest are links.
_NEEDED_COPIED = 6
_NEEDED_LINKED = 1


def _environments() -> Path:
    return cache() / "environments"


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
    """Make the environment of the sources as they are, unless there is one, and return its folder.

    The caller holds the cache's lock.
    """
    python = version()
    target = _environments() / tree_hash(CHECKOUT, _sources(), python)
    if not target.exists():
        dependencies = _dependencies(python)
        partial = fresh_partial(target)
        # Hard links share the files' space and their times, which keeps what is compiled valid.
        shell.run("cp", "--archive", "--link", dependencies, partial)
        _sync(partial, "--no-editable", "--reinstall-package", "arctic-kubernetes")
        partial.rename(target)
    os.utime(target)
    _prune()
    return target


def _dependencies(python: str) -> Path:
    target = _environments() / f"dependencies-{tree_hash(CHECKOUT, _lock_files(), python)}"
    if not target.exists():
        partial = fresh_partial(target)
        requirements.check_space(target.parent, _space_needed(target.parent))
        _sync(partial, "--no-install-project")
        partial.rename(target)
    os.utime(target)
    return target


def _space_needed(folder: Path) -> int:
    store = Path(shell.run(shell.uv(), "cache", "dir").strip())
    linked = any(store.glob("archive-v*/*")) and store.stat().st_dev == folder.stat().st_dev
    return _NEEDED_LINKED if linked else _NEEDED_COPIED


def _sync(environment: Path, *options: str) -> None:
    """Run uv for `environment`. Pods cannot write there, so everything is compiled beforehand."""
    extras = [word for extra in _EXTRAS for word in ("--extra", extra)]
    env = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    env |= {"UV_PROJECT_ENVIRONMENT": str(environment), "UV_COMPILE_BYTECODE": "1"}
    command = [shell.uv(), "sync", "--frozen", "--no-dev", "--python", str(requirements.PYTHON)]
    shell.run(*command, *extras, *options, env=env, cwd=CHECKOUT)
    # The files are links to those in uv's cache, and have the umask of whoever filled that; pods are not root.
    shell.run("chmod", "--recursive", "a+rX", environment)


def _prune() -> None:
    """Remove old environments: all but the latest, and those that a cluster or a pod mounts."""
    linked = " ".join(link.resolve().name for link in CLUSTERS.glob("*/environment"))
    mounted = texts(Path("/proc").glob("[0-9]*/mountinfo"))
    folders = list(_environments().iterdir())
    dependencies = [path for path in folders if path.name.startswith("dependencies-")]
    complete = [path for path in folders if path not in dependencies]
    prune(complete, _KEPT, linked + mounted)
    prune(dependencies, 1)
