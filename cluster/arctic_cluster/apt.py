"""apt-get, which shares its locks with the upgrades that a machine makes by itself."""

import os
import time
from pathlib import Path

from arctic_cluster import shell
from arctic_cluster.errors import ClusterError

_LOCKED = ("Could not get lock", "Unable to lock")
_DENIED = "Permission denied"
"""Said of a lock that nobody holds, too."""
_PATIENCE_SECONDS = 600.0
_POLL_SECONDS = 2.0
_UNATTENDED = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}


def get(*arguments: str, cwd: Path | None = None) -> None:
    """Run apt-get, which asks nobody anything; while somebody else holds one of its locks, wait for up to ten minutes.

    Its own option for that, DPkg::Lock::Timeout, is heeded for dpkg's lock and not for that of the package lists.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            shell.run("apt-get", *arguments, env=os.environ | _UNATTENDED, cwd=cwd)
        except ClusterError as error:
            if _DENIED in str(error):
                raise ClusterError(f"apt-get may be run by root alone: {error}") from error
            if not any(words in str(error) for words in _LOCKED) or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return
