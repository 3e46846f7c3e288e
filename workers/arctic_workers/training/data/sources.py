"""Documents of a source, in an order that depends on nothing but the source: files, folders, globs on file systems."""

import glob
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from arctic_api.training import Source
from arctic_workers.training.errors import Refused

Locate = Callable[[str], str]
"""Where a path of the manifest really is (`TrainingWorld.locate`)."""

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
    reader = _READERS[source.format]
    if source.format == "hf":
        yield from reader(source, path)
        return
    for file in _files(source, path):
        yield from reader(source, file)


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


def _read_text(source: Source, file: Path) -> Iterator[str]:
    try:
        yield file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise _unreadable(source, str(file), error.strerror) from error


def _read_jsonl(source: Source, file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise _unreadable(
                    source, f"{file}, line {number}", 'each line must be a JSON object with a "text"'
                ) from error
            yield _checked(source, text, f"{file}, line {number}")


def _read_parquet(source: Source, file: Path) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        if "text" not in table.schema_arrow.names:
            raise _unreadable(source, str(file), f'no column "text" (found {", ".join(table.schema_arrow.names)})')
        for batch in table.iter_batches(columns=["text"]):
            for text in batch.column(0).to_pylist():
                yield _checked(source, text, str(file))
    except pyarrow.ArrowInvalid as error:
        raise _unreadable(source, str(file), f"not a Parquet file ({error})") from error


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
    return text


_READERS: dict[str, Callable[[Source, Path], Iterator[str]]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "hf": _read_datasets_folder,
}
