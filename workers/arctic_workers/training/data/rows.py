"""Rows of one file of a source, as they come: text, JSON, parquet, a folder of `datasets`. No file is held whole.

What is wrong with a row is said of it and stops nothing; what is wrong with a file raises `FileFault`, or whatever the
library raises.
"""

import json
from collections.abc import Callable, Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from arctic_api.training import Source
from arctic_workers.training.data.opening import open_text

TEXT_PART = 1 << 20
"""Characters of a text file that are one document: a longer file is several."""
LONGEST_LINE = 1 << 28
"""Characters: what has no line ends is none of the formats, and may not fill the memory."""
BATCH_ROWS = 256
_READ = 1 << 20


class FileFault(Exception):  # noqa: N818 - as Refused, which it becomes
    """A file that can't be read; the words say why, and what to write."""


class Row(NamedTuple):
    """One row of a file."""

    place: str
    """Which it is in its file, such as `line 3`."""
    content: Any = None
    """What its field holds."""
    fault: str = ""
    """Why it has none, as the rest of a sentence about it."""


def field_of(source: Source) -> str:
    """Return the name of the field that holds a source's content."""
    return source.field or source.content


def read_text(source: Source, file: Path) -> Iterator[Row]:  # noqa: ARG001 - as all readers
    """Yield a file of text, as parts that end with a line where they can."""
    with open_text(file) as stream:
        kept, number = "", 0
        while part := stream.read(TEXT_PART - len(kept)):
            kept += part
            if len(kept) < TEXT_PART:
                continue
            end = kept.rfind("\n") + 1 or len(kept)
            number += 1
            yield Row(f"part {number}", kept[:end])
            kept = kept[end:]
        if kept or not number:
            yield Row(f"part {number + 1}", kept)


def read_json(source: Source, file: Path) -> Iterator[Row]:
    """Yield the objects of a file that has one a line, or of one that is a JSON array of them."""
    with open_text(file) as stream:
        start = stream.read(1)
        while start.isspace():
            start = stream.read(1)
        if start == "[":
            yield from _elements(source, stream)
            return
    with open_text(file) as stream:  # from the beginning: lines are counted
        yield from _lines(source, stream)


def _lines(source: Source, stream: TextIO) -> Iterator[Row]:
    number = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE and not line.endswith("\n"):
            raise FileFault(f"line {number} has more than {LONGEST_LINE} characters: write one JSON object a line")
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            yield Row(f"line {number}", fault="is no JSON object")
        else:
            yield _row(source, f"line {number}", content)


def _elements(source: Source, stream: TextIO) -> Iterator[Row]:
    """Yield the elements of an array of which `[` is read already."""
    decoder = json.JSONDecoder()
    kept, number, wanted, separators = "", 0, _READ, " \t\r\n"
    while True:
        kept = kept.lstrip(separators)
        if not kept:
            kept = stream.read(_READ)
            if not kept:
                raise FileFault("the JSON array has no end: the file is cut off")
            continue
        if kept[0] == "]":
            if kept[1:].strip() or stream.read(_READ).strip():
                raise FileFault("after its JSON array comes more: write one array, or one JSON object a line")
            return
        try:
            content, end = decoder.raw_decode(kept)
        except (JSONDecodeError, RecursionError) as error:
            # Cut off by what has been read so far, unless nothing is left to read.
            more = stream.read(wanted) if len(kept) < LONGEST_LINE and isinstance(error, JSONDecodeError) else ""
            if not more:
                raise FileFault(f"element {number + 1} of the JSON array can't be read: {error}") from None
            kept, wanted = kept + more, 2 * wanted
            continue
        number += 1
        yield _row(source, f"element {number}", content)
        kept, wanted, separators = kept[end:], _READ, " \t\r\n,"


def _row(source: Source, place: str, content: Any) -> Row:
    name = field_of(source)
    if not isinstance(content, dict):
        return Row(place, fault="is no JSON object")
    if name not in content:
        return Row(place, fault=absent(name, content))
    return Row(place, content[name])


def absent(name: str, fields: Any) -> str:
    """Return the sentence for a field that is not among those that are there."""
    there = ", ".join(map(str, fields)) or "none"
    return f'has no "{name}" (its fields: {there}); write `field` with the one that holds it'


def read_parquet(source: Source, file: Path) -> Iterator[Row]:
    """Yield the rows of a parquet file; `FileFault` names the columns of one that has no such field."""
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file)
    name = field_of(source)
    if name not in table.schema_arrow.names:
        raise FileFault(absent(name, table.schema_arrow.names))
    number = 0
    for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=[name]):
        for content in batch.column(name).to_pylist():
            number += 1
            yield Row(f"row {number}", content)


def read_datasets_folder(source: Source, folder: Path) -> Iterator[Row]:
    """Yield the rows of what `datasets` saved: of a Dataset, or of one split of a DatasetDict.

    Its files are Arrow streams: they are read as such, as the library takes seconds to import.
    """
    import pyarrow.ipc

    folder = split_folder(source, folder)
    name, number = field_of(source), 0
    for part in json.loads((folder / "state.json").read_text())["_data_files"]:
        with pyarrow.memory_map(str(folder / part["filename"])) as stored:
            table = pyarrow.ipc.open_stream(stored)
            if name not in table.schema.names:
                raise FileFault(absent(name, table.schema.names))
            for batch in table:
                for content in batch.column(name):
                    number += 1
                    yield Row(f"row {number}", content.as_py())


DEFAULT_SPLIT = "train"


def splits(folder: Path) -> list[str]:
    """Return the splits of a saved DatasetDict, in its order; none where the folder is no such thing."""
    file = folder / "dataset_dict.json"
    if not file.is_file():
        return []
    found = json.loads(file.read_text())["splits"]
    return [str(name) for name in found]


def split_folder(source: Source, folder: Path) -> Path:
    """Return the folder of the one Dataset that a source means; `FileFault` names the splits that are there."""
    found = splits(folder)
    if not found:
        if source.split is not None:
            raise FileFault(f"is one data set without splits: leave split {source.split!r} out")
        if not (folder / "state.json").is_file():
            raise FileFault("is not a folder that datasets' save_to_disk wrote")
        return folder
    name = source.split or DEFAULT_SPLIT
    if name not in found:
        raise FileFault(f"has no split {name!r} (there are: {', '.join(found)}); write `split` with one of them")
    return folder / name


READERS: dict[str, Callable[[Source, Path], Iterator[Row]]] = {
    "text": read_text,
    "jsonl": read_json,
    "parquet": read_parquet,
    "hf": read_datasets_folder,
}
