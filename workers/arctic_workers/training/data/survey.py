"""What can be said of sources at a glance, before any rank starts: that their files are there, and can be read.

Needs no torch, and no library but those that the files themselves need.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from arctic_api.training import ArcticTrainingSpec, Source
from arctic_workers.training.data.messages import RowFault
from arctic_workers.training.data.sources import Locate, Tally, content_of, place_of, read_rows, source_files
from arctic_workers.training.errors import Refused

GLANCE_SECONDS = 1.5
"""Time for all sources; whatever is left then is found out by the run itself."""
_FILES = 8
_ROWS = 50
BYTES_PER_TOKEN = 4
"""Of text in a language of the Latin alphabet, under a vocabulary of 32,000."""
_PACKED_BY = 3
"""How much smaller text is where it is packed, about."""
_PACKED = (".gz", ".zst", ".zstd", ".xz", ".bz2", ".parquet", ".pq")


@dataclass(frozen=True)
class Glance:
    """What was seen of one source."""

    field: str
    """Its place in the specification, such as `data.sources[0]`."""
    source: Source
    refusal: str = ""
    """Why it can't be used: a sentence that names the source."""
    tokens: int = 0
    """About how many tokens its files have, by their sizes; 0 if that is not known."""


def glance(spec: ArcticTrainingSpec, locate: Locate) -> Iterator[Glance]:
    """Look at each source of a specification, as long as there is time."""
    deadline = time.monotonic() + GLANCE_SECONDS
    for field, source in sources_of(spec):
        if time.monotonic() < deadline:
            yield _look(field, source, locate, deadline)


def sources_of(spec: ArcticTrainingSpec) -> list[tuple[str, Source]]:
    """Return all sources of a specification, with their places in it."""
    lists = {"data.sources": spec.data.sources, "data.validation.sources": spec.data.validation.sources or []}
    return [(f"{name}[{i}]", source) for name, sources in lists.items() for i, source in enumerate(sources)]


def _look(field: str, source: Source, locate: Locate, deadline: float) -> Glance:
    try:
        files = source_files(source, locate)
        check_beginnings(source, files, deadline)
    except Refused as refusal:
        return Glance(field, source, refusal.message)
    except (ImportError, OSError):  # a library, or a file system, that only the workers have
        return Glance(field, source)
    return Glance(field, source, tokens=sum(map(_bytes, files)) // BYTES_PER_TOKEN)


def check_beginnings(source: Source, files: list[Path], deadline: float = float("inf")) -> None:
    """Refuse a source of whose files some can't be read, or in which no row has a text, as far as their beginnings go.

    Args:
        source: of the manifest.
        files: of the source.
        deadline: by `time.monotonic`, when to look no further.
    """
    tally = Tally()
    for file in files[:: -(-len(files) // _FILES)]:
        if time.monotonic() > deadline:
            return
        for _, row in islice(read_rows(source, [file]), _ROWS):
            tally.rows += 1
            try:
                content_of(source, row)
            except RowFault as fault:
                tally.skip(place_of(file, row), str(fault))
    if tally.rows and tally.skipped == tally.rows:
        raise Refused(
            "SourceUnreadable",
            f"source {source.name}: the first {tally.rows} rows all have no usable {source.content}; "
            f"the first: {tally.first_skipped}",
        )


def _bytes(file: Path) -> int:
    """Return about how many bytes of text a file has, or a folder that `datasets` saved."""
    if file.is_dir():
        return sum(part.stat().st_size for part in file.rglob("*.arrow"))
    return file.stat().st_size * (_PACKED_BY if file.name.endswith(_PACKED) else 1)
