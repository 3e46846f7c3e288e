"""Documents of a source, in an order that depends on nothing but the source: files, folders, globs on file systems."""

import errno
import glob
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from arctic_api.training import Source
from arctic_workers.training.errors import Refused

Locate = Callable[[str], str]
"""Where a path of the manifest really is (`TrainingWorld.locate`)."""

_FAULTS = (ValueError, LookupError, TypeError, NotImplementedError, RecursionError)
"""What the libraries raise for content that they can't read."""
_LASTING = (None, errno.EACCES, errno.EPERM)
"""Errors (without a number: pyarrow's own) that another attempt would meet again; others are the file system's."""

_ENCODING = "utf-8-sig"  # what Windows tools write before a text is none of it
_SUFFIX = {"text": "*", "jsonl": "*.jsonl", "parquet": "*.parquet"}


def file_path(uri: str, locate: Locate, what: str) -> Path:
    """Return the path behind a `file://` URI; `Refused` names `what` when it is another kind of URI."""
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise Refused("UnsupportedURI", f"{what}: {uri} is not supported yet: write file:///path")
    return Path(locate(unquote(parts.path)))


def read_documents(source: Source, locate: Locate) -> Iterator[str]:
    """Yield the texts of a source; `Refused` says which file is missing or unreadable and why."""
    path = file_path(source.uri, locate, f"source {source.name}")
    with _explained(source, path):
        files = [path] if source.format == "hf" else _files(source, path)
    for file in files:
        with _explained(source, file):
            yield from _READERS[source.format](source, file)


@contextmanager
def _explained(source: Source, file: Path) -> Iterator[None]:
    """Let whatever a library raises name the source and the file: `Refused`, unless another attempt may help."""
    try:
        yield
    except OSError as error:
        if error.errno in _LASTING:
            raise _unreadable(source, str(file), error.strerror or error) from error
        raise OSError(error.errno, f"source {source.name}: {error.strerror}", str(file)) from error
    except _FAULTS as error:
        raise _unreadable(source, str(file), f"not whole {source.format} ({error})") from error


def _files(source: Source, path: Path) -> list[Path]:
    """Return the files of a file, folder or glob, sorted; hidden ones are left out."""
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [file for file in path.rglob(_SUFFIX[source.format]) if not _hidden(file, path)]
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise Refused(
            "SourceNotFound", f"source {source.name}: no {source.format} file at {source.uri} (looked at {path})"
        )
    return files


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _unreadable(source: Source, place: str, why: object) -> Refused:
    return Refused("SourceUnreadable", f"source {source.name}: {place}: {why}")


def _read_text(source: Source, file: Path) -> Iterator[str]:  # noqa: ARG001 - as all readers
    yield file.read_text(encoding=_ENCODING, errors="replace")


def _read_jsonl(source: Source, file: Path) -> Iterator[str]:
    with file.open(encoding=_ENCODING, errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise _unreadable(
                    source, f"{file}, line {number}", 'each line must be a JSON object with a "text"'
                ) from error
            yield _checked(source, text, f"{file}, line {number}")


def _read_parquet(source: Source, file: Path) -> Iterator[str]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file)
    if "text" not in table.schema_arrow.names:
        raise _unreadable(source, str(file), f'no column "text" (found {", ".join(table.schema_arrow.names)})')
    for batch in table.iter_batches(columns=["text"]):
        for text in batch.column(0).to_pylist():
            yield _checked(source, text, str(file))


def _read_datasets_folder(source: Source, folder: Path) -> Iterator[str]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (FileNotFoundError, ValueError) as error:
        raise Refused(
            "SourceNotFound",
            f"source {source.name}: {source.uri} is not a folder that datasets' save_to_disk wrote: {error}",
        ) from error
    parts: list[Any] = list(loaded.values()) if isinstance(loaded, datasets.DatasetDict) else [loaded]
    for part in parts:
        if "text" not in part.column_names:
            raise _unreadable(source, str(folder), f'no column "text" (found {", ".join(part.column_names)})')
        for row in part.select_columns(["text"]):
            yield _checked(source, row["text"], str(folder))


def _checked(source: Source, text: object, place: str) -> str:
    if not isinstance(text, str):
        raise _unreadable(source, place, f'"text" is {type(text).__name__}, not a string')
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold and UTF-8 can't
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


_READERS: dict[str, Callable[[Source, Path], Iterator[str]]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "hf": _read_datasets_folder,
}
