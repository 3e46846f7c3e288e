"""Files: writing them so that a crash leaves the old content or the new, hashing trees, locking."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

FOR_PODS = 0o022
"""Umask of what writes files that pods read: they are not root, and a hardened machine has a stricter one."""


def write_atomically(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write `content` to `path` through a temporary file beside it, synced and renamed."""
    temporary = path.with_name(f".{path.name}.partial")
    data = content.encode() if isinstance(content, str) else content
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def tree_hash(base: Path, files: Iterable[Path], *extra: str) -> str:
    """Twelve hex digits over `extra` and the `files`' contents and paths below `base`, in any order."""
    digest = hashlib.sha256(json.dumps(extra).encode())
    for file in sorted(files):
        content = file.read_bytes()
        digest.update(json.dumps([str(file.relative_to(base)), len(content)]).encode() + content)
    return digest.hexdigest()[:12]


def files_under(folder: Path) -> list[Path]:
    """All files below `folder` but what Python compiles."""
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def fresh_partial(target: Path) -> Path:
    """Where `target` is made before it is renamed to its name: nothing is there, and the folder around it is."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    return partial


def texts(files: Iterable[Path]) -> str:
    """What is in all of `files`; those that vanish while they are looked at are left out."""
    found = []
    for file in files:
        with contextlib.suppress(OSError):
            found.append(file.read_text())
    return "".join(found)


def prune(made: Iterable[Path], latest: int, in_use: str = "") -> None:
    """Remove folders of a cache, but for the `latest` touched last and those that the text `in_use` names.

    Partial ones go, too: the caller holds the lock under which they are made, so that a crash has left them.
    """
    by_time = sorted(made, key=lambda path: path.stat().st_mtime, reverse=True)
    partial = [path for path in by_time if path.name.startswith(".")]
    whole = [path for path in by_time if path not in partial]
    for path in [*partial, *whole[latest:]]:
        if path.name not in in_use:
            shutil.rmtree(path)


@contextlib.contextmanager
def readable_by_all() -> Iterator[None]:
    """Let everybody read what is made meanwhile."""
    before = os.umask(FOR_PODS)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` (made when missing), waiting for whoever has it; a crash releases it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"waiting for another `arctic` (it holds {path})\n")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
