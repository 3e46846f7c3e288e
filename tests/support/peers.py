"""Software of others that ours is compared with, or asked by, each in a virtual environment of its own.

An environment is built once by uv and cached outside the tree under a name that hashes what went into it.
`python peers.py NAME` prints its interpreter, building it when it is not there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from arctic_cluster import paths


@dataclass(frozen=True)
class Peer:
    """What goes into an environment."""

    requirements: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    """Of the environment in which it is built."""
    compiles: bool = False


# PyPI has only the source of llama-cpp-python: build its library alone, without tools, servers and image models.
_CMAKE_ARGUMENTS = (
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

PEERS = {
    "llama-cpp": Peer(
        ("llama-cpp-python==0.3.36", "gguf==0.17.1", "numpy==2.3.5", "safetensors==0.8.0"),
        {"CMAKE_ARGS": " ".join(_CMAKE_ARGUMENTS), "CMAKE_BUILD_PARALLEL_LEVEL": "2"},
        compiles=True,
    ),
    "lm-eval": Peer(("lm-eval[api,ifeval]==0.4.13",)),
    "peft": Peer(("peft==0.21.2", "transformers==4.57.3", "torch==2.13.0", "numpy==2.3.5", "pydantic==2.14.3")),
}
"""llama.cpp takes 10 to 25 minutes of C++ on two cores, the others a minute."""


def interpreter(name: str) -> Path:
    """Return the Python interpreter of a peer's environment; builds it first."""
    peer = PEERS[name]
    recipe = "\n".join((*peer.requirements, *peer.variables.values(), sys.version, os.uname().machine))
    folder = paths.cache() / "peers" / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            _build(peer, folder)
    return folder / "bin" / "python"


def _build(peer: Peer, folder: Path) -> None:
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        raise RuntimeError("uv is missing: the Makefile's targets bring it")
    if peer.compiles and shutil.which("c++") is None:
        raise RuntimeError("it is built from source: apt-get install --no-install-recommends g++")
    subprocess.run([uv, "venv", "--clear", "--python", sys.executable, str(folder)], check=True)
    install = ["nice", uv, "pip", "install", "--python", str(folder / "bin" / "python"), *peer.requirements]
    subprocess.run(install, check=True, env=os.environ | peer.variables)
    (folder / "complete").touch()


if __name__ == "__main__":
    print(interpreter(sys.argv[1]))
