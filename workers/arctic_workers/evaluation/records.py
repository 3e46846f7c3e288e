"""What an evaluation keeps of its work in its folder: answers and verdicts as they come, a line each.

A folder is one model's, asked in one way: it goes on where it was ended, and refuses to mix.
"""

import json
import threading
from collections.abc import Iterator, Mapping
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
    """A file of JSON lines that is added to; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = _cut_broken_end(path)
        self.before: list[dict[str, Any]] = [json.loads(line) for line in whole]
        """What was there."""
        self._file = path.open("a")
        self._lock = threading.Lock()

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line."""
        text = json.dumps(line) + "\n"
        with self._lock:
            self._file.write(text)
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _cut_broken_end(path: Path) -> list[str]:
    """Return the lines of a file; what was being written when its writer was ended is cut off."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return whole.decode().splitlines()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Return the whole lines of a file that is there."""
    if path.exists():
        content = path.read_text()
        yield from (json.loads(line) for line in content[: content.rfind("\n") + 1].splitlines())
