"""Gathers in one archive what our code needs on a machine with Python 3.12, torch and Triton, and no network.

Run by `make bench-gpu-bundle`, in uv's environment: the versions are those of uv.lock, the generated code is the one of
this environment. What torch itself brings is left out. `scripts/on_gpu.sh` unpacks the archive where it is used.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ARCHIVE = ROOT / ".gpu-bundle" / "packages.zip"
MOST = 64 << 20
"""Bytes that may be carried to such a machine."""
PYTHON, PLATFORM = "3.12", "x86_64-manylinux_2_28"
WANTED = ("--extra", "training", "--group", "engine-tests")
"""What trainer and engine import, and pytest."""
LEFT_OUT = ("torch", "pyarrow", "huggingface-hub", "openai", "httpx")
"""torch is there; what reads Parquet, a hub or another engine's API is never asked on that machine."""


def main() -> None:
    """Make the archive anew."""
    uv = os.environ.get("UV")
    if uv is None:
        sys.exit("uv doesn't run this: write make bench-gpu-bundle")
    with tempfile.TemporaryDirectory() as scratch:
        site = Path(scratch) / "site"
        install(uv, requirements(uv), site)
        shutil.copytree(
            ROOT / "protos" / "arctic_rpc", site / "arctic_rpc", ignore=shutil.ignore_patterns("__pycache__")
        )
        made = Path(shutil.make_archive(str(Path(scratch) / "packages"), "zip", site))
        if made.stat().st_size > MOST:
            sys.exit(f"the bundle has {made.stat().st_size / 2**20:.0f} MiB, of {MOST >> 20} that may be carried")
        ARCHIVE.parent.mkdir(exist_ok=True)
        shutil.move(made, ARCHIVE)
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size / 2**20:.0f} MiB")


def requirements(uv: str) -> str:
    """Return the locked versions, a line each."""
    bare = ("--frozen", "--no-hashes", "--no-header", "--no-annotate", "--no-emit-project", "--no-dev")
    pruned = [word for name in LEFT_OUT for word in ("--prune", name)]
    command = [uv, "export", "--quiet", *bare, *WANTED, *pruned]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def install(uv: str, lines: str, site: Path) -> None:
    """Unpack these packages in a folder, as that machine's Python imports them."""
    target = ("--python-version", PYTHON, "--python-platform", PLATFORM, "--target", str(site))
    command = [uv, "pip", "install", "--quiet", "--no-deps", "--link-mode", "copy", *target, "-r", "-"]
    subprocess.run(command, check=True, input=lines, text=True)


if __name__ == "__main__":
    main()
