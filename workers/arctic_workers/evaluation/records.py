"""What an evaluation keeps of its work in its folder: answers and verdicts as they come, a line each.

A folder is one model's, asked in one way: it goes on where it was ended, and refuses to mix.
"""

import json
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from arctic_workers.training.files import write_json

ASKED = "asked.json"


class MixedError(Exception):
    """A folder has the answers of another model, or of one asked otherwise."""


def claim(folder: Path, asked: Mapping[str, Any]) -> None:
    """Make a folder that of one model, asked in one way; MixedError if it is another one's."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ASKED
    if path.exists():
        before = json.loads(path.read_text())
        differing = sorted(name for name in {*before, *asked} if before.get(name) != asked.get(name))
        if differing:
            was = ", ".join(f"{name} {before.get(name)!r} and not {asked.get(name)!r}" for name in differing)
            raise MixedError(f"{folder} has the answers of another evaluation ({was}): name another folder")
    else:
        write_json(path, dict(asked))


class Lines:
    """A file of JSON lines that is added to; safe to use from several threads.

    To open it puts a new file with all its whole lines in its place. So who had it before and may be writing still, as
    a pod on a node that was taken for lost, goes on in one that nobody reads any more: no two write into the same.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.before: list[dict[str, Any]] = list(read_lines(path))
        """What was there."""
        mine = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        self._file = mine.open("w")
        self._file.writelines(map(_line, self.before))
        self._file.flush()
        mine.replace(path)
        self._lock = threading.Lock()

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line."""
        text = _line(line)
        with self._lock:
            self._file.write(text)
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _line(line: Mapping[str, Any]) -> str:
    return json.dumps(line) + "\n"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Return the whole lines of a file that is there.

    One that is not may stand anywhere: a disk that is full takes the beginning of it, and the next line once it has
    room again.
    """
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and line.endswith(b"\n"):
                yield found
