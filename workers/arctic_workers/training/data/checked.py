"""Whether a source's streams are as they were written, without reading a large corpus anew at each start.

Files that were found whole are not read again while size, modification time and inode say that nobody has written to
them, and the index with their digests is the same. A change time would say more, but volumes are often given another
group at each mount, which moves it. Where an inode is not kept, as on some network file systems, all is read.
"""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from arctic_workers.training.data.streams import INDEX, is_whole, stream_files
from arctic_workers.training.files import sha256, write_json

CHECKED = "checked.json"
SETTLED_SECONDS = 2.0
"""Age at which a modification time tells of later writes: clocks of file systems may be so coarse."""


def is_as_written(folder: Path) -> bool:
    """Return whether a folder's streams are whole, as far as that must be looked at; OSError if it can't be told."""
    before = _stamps(folder)
    if before is not None and before == _kept(folder):
        return True
    if not is_whole(folder):
        return False
    if before == _stamps(folder):
        keep_stamps(folder)
    return True


def keep_stamps(folder: Path) -> None:
    """Note of streams that are whole, and settled, what will say that they are as now; for speed, so it never fails."""
    stamps = _stamps(folder)
    newest = max((file.stat().st_mtime for file in stream_files(folder)), default=0.0)
    if stamps is not None and newest < time.time() - SETTLED_SECONDS:
        with suppress(OSError):
            write_json(folder / CHECKED, stamps)


def _stamps(folder: Path) -> dict[str, Any] | None:
    try:
        stats = {file.name: file.stat() for file in stream_files(folder)}
        stamps = {name: [stat.st_size, stat.st_mtime_ns, stat.st_ino] for name, stat in stats.items()}
        return {"files": stamps, "index": sha256(folder / INDEX)}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _kept(folder: Path) -> Any:
    try:
        return json.loads((folder / CHECKED).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
