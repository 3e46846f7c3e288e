"""Builds what is not committed whenever the distribution is: `arctic_rpc`, and the native engine's compiled code."""

import os
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parents[1]
PROTOS = ROOT / "protos"
KERNEL = ROOT / "workers" / "arctic_workers" / "inference" / "engines" / "native" / "kernel"
# Bits are those that the source says: the compiler fuses nothing by itself.
FLAGS = (
    *("-std=c++20", "-O3", "-ffp-contract=off", "-mavx2", "-mfma", "-fPIC", "-shared", "-pthread"),
    *("-Wall", "-Wextra", "-Werror"),
)
# What a machine has is looked at when the code is loaded. GCC warns of undefined operands in its own intrinsics (its
# bug 105593), clang of options that it doesn't know.
AVX512 = (
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
    *("-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"),
)
BUILDS = {"avx2": (), "avx512": AVX512, "avx512_bf16": (*AVX512, "-mavx512bf16", "-mavx512vbmi")}


class BuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs protoc and the C++ compiler."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 (the hook's interface)
        """Write `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` beside each .proto file, and libkernel_*.so."""
        generate_rpc()
        compile_kernel()


def generate_rpc() -> None:
    """Generate code with `protos/` as the import root, so that its imports need no patching."""
    import grpc_tools
    from grpc_tools import protoc

    well_known = Path(grpc_tools.__file__).parent / "_proto"
    sources = [str(path) for path in sorted((PROTOS / "arctic_rpc").glob("*.proto"))]
    outputs = [f"--{kind}_out={PROTOS}" for kind in ("python", "grpc_python", "pyi")]
    if protoc.main(["protoc", f"--proto_path={PROTOS}", f"--proto_path={well_known}", *outputs, *sources]) != 0:
        raise RuntimeError(f"protoc failed on {sources}")


def compile_kernel() -> None:
    """Compile the native engine's code; without a compiler, or on another processor, torch takes its place."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None or os.uname().machine != "x86_64":
        for library in KERNEL.glob("libkernel*.so"):
            library.unlink()
        print("no C++ compiler for x86-64: the native engine will use torch, which is slower", file=sys.stderr)
        return

    sources = runpy.run_path(str(KERNEL / "sources.py"))["digest"]()

    def build(name: str) -> None:
        library, made = KERNEL / f"libkernel_{name}.so", KERNEL / f"libkernel_{name}.so.{os.getpid()}"
        told = (*FLAGS, *BUILDS[name], f'-DARCTIC_SOURCES="{sources}"')
        subprocess.run([compiler, *told, "-o", str(made), str(KERNEL / "kernel.cpp")], check=True)
        made.replace(library)  # a process that runs keeps the old one

    with ThreadPoolExecutor() as pool:
        list(pool.map(build, BUILDS))
