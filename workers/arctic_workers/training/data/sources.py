"""Documents of a source, in an order that depends on nothing but the source: files, folders, globs on file systems."""

import errno
import glob
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from arctic_api.common import parse_percent
from arctic_api.training import Source
from arctic_api.uris import path_of
from arctic_workers.training.data.messages import Message, RowFault, messages_of, whole_characters
from arctic_workers.training.data.opening import DAMAGED
from arctic_workers.training.data.rows import DEFAULT_SPLIT, READERS, FileFault, Row, field_of, splits
from arctic_workers.training.errors import Refused

T = TypeVar("T")

Locate = Callable[[str], str]
"""Where a path of the manifest really is (`TrainingWorld.locate`)."""

_FAULTS = (ValueError, LookupError, TypeError, NotImplementedError, RecursionError, *DAMAGED)
"""What the libraries raise for content that they can't read."""
_LASTING = (None, errno.EACCES, errno.EPERM)
"""Errors (without a number: the libraries' own) that another attempt would meet again; others are the file system's."""

_PACKED = r"(\.(gz|zst|zstd|xz|bz2))?$"
_NAMES = {
    "text": [""],
    "jsonl": [rf"\.(jsonl|ndjson){_PACKED}", rf"\.json{_PACKED}"],
    "parquet": [r"\.(parquet|pq)$"],
}
"""Which files of a folder are a source's, by their names: the first kind of which there are any."""


@dataclass
class Tally:
    """What reading a source came to."""

    rows: int = 0
    """All that were read."""
    skipped: int = 0
    """Those without a usable text."""
    first_skipped: str = ""
    """File, line and reason of the first of them."""

    def skip(self, place: str, why: str) -> None:
        """Count a row that is left out."""
        self.skipped += 1
        self.first_skipped = self.first_skipped or f"{place} {why}"


def file_path(uri: str, locate: Locate, what: str) -> Path:
    """Return where the path of a URI `file:///...` is; `Refused` names `what` when it is another kind of URI."""
    path = path_of(uri)
    if path == uri:
        raise Refused("UnsupportedURI", f"{what}: {uri} is not supported yet: write file:///path")
    return Path(locate(path))


def read_documents(source: Source, locate: Locate, tally: Tally | None = None) -> Iterator[str]:
    """Yield the texts of a source, of conversations what is said in them; else as `read_contents`."""
    return read_contents(source, locate, Tally() if tally is None else tally, _as_text)


def read_contents(source: Source, locate: Locate, tally: Tally, make: Callable[[Any], T]) -> Iterator[T]:
    """Yield what `make` makes of the contents of a source's rows, without those that have none.

    `Refused` says which file is missing or unreadable and why; at the end also where more rows were left out than
    `maxSkipped` allows.

    Args:
        source: of the manifest.
        locate: where its paths are.
        tally: is counted up.
        make: is given the text, or the messages; may raise `RowFault`.
    """
    for file, row in read_rows(source, source_files(source, locate)):
        tally.rows += 1
        try:
            made = make(content_of(source, row))
        except RowFault as fault:
            tally.skip(place_of(file, row), str(fault))
            continue
        yield made
    check_skipped(source, tally)


def content_of(source: Source, row: Row) -> str | list[Message]:
    """Return a row's text or messages; `RowFault` says why there is none."""
    if row.fault:
        raise RowFault(row.fault)
    if source.content == "messages":
        return messages_of(row.content)
    if not isinstance(row.content, str):
        found = "null" if row.content is None else type(row.content).__name__
        raise RowFault(f'has no text: its "{field_of(source)}" is {found}, not a string')
    return whole_characters(row.content)


def _as_text(content: str | list[Message]) -> str:
    return content if isinstance(content, str) else "\n".join(message["content"] for message in content)


def source_files(source: Source, locate: Locate) -> list[Path]:
    """Return the files of a source, or the folder that `datasets` saved; `Refused` where there are none."""
    path = file_path(source.uri, locate, f"source {source.name}")
    with _explained(source, path):
        return [path] if source.format == "hf" else _files(source, path)


def read_rows(source: Source, files: list[Path]) -> Iterator[tuple[Path, Row]]:
    """Yield the rows of files, each with its file; `Refused` says which one can't be read and why."""
    for file in files:
        with _explained(source, file):
            for row in READERS[source.format](source, file):
                yield file, row


def place_of(file: Path, row: Row) -> str:
    """Return how people find a row."""
    return f"{file}, {row.place}"


def unused_splits(source: Source, locate: Locate) -> list[str]:
    """Return the splits of a source that are not read."""
    if source.format != "hf":
        return []
    found = splits(file_path(source.uri, locate, f"source {source.name}"))
    return [name for name in found if name != (source.split or DEFAULT_SPLIT)]


def check_skipped(source: Source, tally: Tally) -> None:
    """Refuse a source of which more rows were left out than the manifest allows."""
    if not tally.skipped or tally.skipped / tally.rows <= parse_percent(source.max_skipped):
        return
    raise Refused(
        "SourceUnreadable",
        f"source {source.name}: {tally.skipped} of {tally.rows} rows have no usable {source.content}, more than "
        f"maxSkipped {source.max_skipped}; the first: {tally.first_skipped}",
    )


@contextmanager
def _explained(source: Source, file: Path) -> Iterator[None]:
    """Let whatever a library raises name the source and the file: `Refused`, unless another attempt may help."""
    try:
        yield
    except FileFault as error:
        raise Refused("SourceUnreadable", f"source {source.name}: {file}: {error}") from error
    except OSError as error:
        if error.errno in _LASTING:
            raise _unreadable(source, str(file), error.strerror or error) from error
        raise OSError(error.errno, f"source {source.name}: {error.strerror}", str(file)) from error
    except _FAULTS as error:
        raise _unreadable(source, str(file), f"not whole {source.format} ({error})") from error


def _files(source: Source, path: Path) -> list[Path]:
    """Return the files of a file, folder or glob, sorted; hidden ones are left out, and links to what is there too."""
    if path.is_file():
        return [path]
    if path.is_dir():
        there = list(_below(path))
        kinds = [[file for file in there if re.search(kind, file.name)] for kind in _NAMES[source.format]]
        found = next(filter(None, kinds), [])
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
    files = sorted({file.resolve(): file for file in sorted(found, reverse=True) if file.is_file()}.values())
    if not files:
        raise Refused(
            "SourceNotFound", f"source {source.name}: no {source.format} file at {source.uri} (looked at {path})"
        )
    return files


def _below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the files below a folder, those that links lead to among them, without hidden ones."""
    here = folder.resolve()
    if here in above:  # a link to where it is itself
        return
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except PermissionError:  # as of a volume's lost+found
        return
    for entry in entries:
        if entry.is_dir():
            yield from _below(entry, (*above, here))
        elif entry.is_file():
            yield entry


def _unreadable(source: Source, place: str, why: object) -> Refused:
    return Refused("SourceUnreadable", f"source {source.name}: {place}: {why}")
