"""Running commands of the host: the one place that starts a command and waits for it."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from arctic_cluster.errors import ClusterError
from arctic_cluster.paths import CHECKOUT

_SHOWN = 2000
_SECONDS_TO_TIDY_UP = 20


def run(
    *command: str | Path, stdin: str | None = None, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> str:
    """Run `command` and return what it printed; a failure raises with the end of what it said."""
    arguments = [str(word) for word in command]
    try:
        child = subprocess.Popen(
            arguments,
            stdin=None if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=cwd,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise ClusterError(f"the command {arguments[0]!r} is not on this machine") from error
    with child:
        printed, complained = _communicate(child, stdin)
    if child.returncode != 0:
        said = (complained or printed).strip()[-_SHOWN:]
        raise ClusterError(f"`{' '.join(arguments)}` failed with exit code {child.returncode}: {said}")
    return printed


def _communicate(child: subprocess.Popen[str], stdin: str | None) -> tuple[str, str]:
    try:
        return child.communicate(stdin)
    except KeyboardInterrupt:
        # The child got the Ctrl-C as well, and what installs or mounts has something to tidy up.
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=_SECONDS_TO_TIDY_UP)
        raise
    finally:
        child.kill()


def attempt(*command: str | Path) -> bool:
    """Run `command` where failing is an answer: whether it succeeded."""
    try:
        run(*command)
    except ClusterError:
        return False
    return True


def have(command: str) -> bool:
    """Whether `command` is on PATH."""
    return shutil.which(command) is not None


def uv() -> str:
    """The uv that runs this, or the one on PATH, or the pinned one, brought as `make` brings it."""
    found = os.environ.get("UV") or shutil.which("uv")
    return found or run(CHECKOUT / "scripts" / "bootstrap.sh").strip()
