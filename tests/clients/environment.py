"""The environment of clients that ours can't share: EleutherAI's lm-eval in a virtual environment of its own.

It is built once by uv and cached outside the tree under a name that hashes what went into it. `python environment.py`
prints its interpreter, building it when it is not there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from arctic_cluster import paths

REQUIREMENTS = ("lm-eval[api]==0.4.13",)


def interpreter() -> Path:
    """Return the Python interpreter of the environment; makes it first (a minute)."""
    recipe = "\n".join((*REQUIREMENTS, sys.version, os.uname().machine))
    cache = paths.cache() / "clients"
    folder = cache / hashlib.sha256(recipe.encode()).hexdigest()[:16]
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            _build(folder)
    return folder / "bin" / "python"


def _build(folder: Path) -> None:
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        raise RuntimeError("uv is missing: `make test-clients` brings it")
    subprocess.run([uv, "venv", "--clear", "--python", sys.executable, str(folder)], check=True)
    install = ["nice", uv, "pip", "install", "--python", str(folder / "bin" / "python"), *REQUIREMENTS]
    subprocess.run(install, check=True)
    (folder / "complete").touch()


if __name__ == "__main__":
    print(interpreter())
