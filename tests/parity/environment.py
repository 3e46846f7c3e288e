"""The environment of the implementation that we compare with: llama.cpp in a virtual environment of its own.

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

REQUIREMENTS = ("llama-cpp-python==0.3.36", "gguf==0.17.1", "numpy==2.3.5", "safetensors==0.8.0")
# PyPI has only the source of llama-cpp-python: build its library alone, without tools, servers and image models.
CMAKE_ARGUMENTS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAVA_BUILD=OFF",
    "-DMTMD_BUILD=OFF",
    "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
)


def interpreter() -> Path:
    """Return the Python interpreter of the environment; builds it first (10 to 25 minutes of C++ on two cores)."""
    recipe = "\n".join((*REQUIREMENTS, *CMAKE_ARGUMENTS, sys.version, os.uname().machine))
    cache = paths.cache() / "parity"
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
        raise RuntimeError("uv is missing: `make parity` brings it")
    if shutil.which("c++") is None:
        raise RuntimeError("llama.cpp is built from source: apt-get install --no-install-recommends g++")
    environment = {**os.environ, "CMAKE_ARGS": " ".join(CMAKE_ARGUMENTS), "CMAKE_BUILD_PARALLEL_LEVEL": "2"}
    subprocess.run([uv, "venv", "--clear", "--python", sys.executable, str(folder)], check=True)
    install = ["nice", uv, "pip", "install", "--python", str(folder / "bin" / "python"), *REQUIREMENTS]
    subprocess.run(install, check=True, env=environment)
    (folder / "complete").touch()


if __name__ == "__main__":
    print(interpreter())
