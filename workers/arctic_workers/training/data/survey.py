"""What can be said of sources at a glance, before any rank starts: that their files are there, and can be read.

Needs no torch, and no library but those that the files themselves need.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Thread

from arctic_api.training import ArcticTrainingSpec, Source
from arctic_workers.training.data.messages import RowFault
from arctic_workers.training.data.opening import is_packed
from arctic_workers.training.data.sources import Locate, Tally, content_of, place_of, read_rows, source_files
from arctic_workers.training.errors import Refused

GLANCE_SECONDS = 1.5
"""Time for all sources; whatever is left then is found out by the run itself."""
_AT_ONCE = 4
"""Sources that are looked at at once: one whose file system does not answer leaves time for the others."""
_FILES = 8
_ROWS = 50
BYTES_PER_TOKEN = 4
"""Of text in a language of the Latin alphabet, under a vocabulary of 32,000."""
_PACKED_BY = 3
"""How much smaller text is where it is packed, about."""


@dataclass(frozen=True)
class Glance:
    """What was seen of one source."""

    field: str
    """Its place in the specification, such as `data.sources[0]`."""
    source: Source
    refusal: str = ""
    """Why it can't be used: a sentence that names the source."""
    size: int = 0
    """Bytes of its files, 0 if that is not known."""
    packed: bool = False
    """Whether these say little of how much text it is."""
    in_time: bool = True
    """Whether there was time to look at it."""

    @property
    def tokens(self) -> int:
        """About how many tokens its files have, 0 if that is not known."""
        return self.size * (_PACKED_BY if self.packed else 1) // BYTES_PER_TOKEN

    @property
    def most_tokens(self) -> float:
        """As many tokens as its files can't have more than: a token is a byte at least, but for a document's two ends.

        A chat template writes more than conversations have.
        """
        return float("inf") if self.packed or not self.size or self.source.content == "messages" else self.size


def glance(spec: ArcticTrainingSpec, locate: Locate) -> list[Glance]:
    """Look at each source of a specification, as long as there is time: it returns within `GLANCE_SECONDS`."""
    deadline = time.monotonic() + GLANCE_SECONDS
    found = {field: Glance(field, source, in_time=False) for field, source in sources_of(spec)}
    waiting = iter(list(found.values()))

    def work() -> None:
        for each in waiting:
            if time.monotonic() > deadline:
                return
            found[each.field] = _look(each.field, each.source, locate, deadline)

    # As daemons: nothing ends a look at a file system that doesn't answer.
    threads = [Thread(target=work, daemon=True) for _ in range(min(_AT_ONCE, len(found)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return list(found.values())


def sources_of(spec: ArcticTrainingSpec) -> list[tuple[str, Source]]:
    """Return all sources of a specification, with their places in it."""
    lists = {"data.sources": spec.data.sources, "data.validation.sources": spec.data.validation.sources or []}
    return [(f"{name}[{i}]", source) for name, sources in lists.items() for i, source in enumerate(sources)]


def _look(field: str, source: Source, locate: Locate, deadline: float) -> Glance:
    try:
        files = source_files(source, locate)
        check_beginnings(source, files, deadline)
        size, packed = sum(map(_size, files)), _is_packed(source, files)
    except Refused as refusal:
        return Glance(field, source, refusal.message)
    except (ImportError, OSError):  # a library, or a file system, that only the workers have
        return Glance(field, source)
    return Glance(field, source, size=size, packed=packed)


def check_beginnings(source: Source, files: Sequence[Path], deadline: float = float("inf")) -> None:
    """Refuse a source of whose files some can't be read, or in which no row has a text, as far as their beginnings go.

    Rows that are null say nothing of the others: files that are sorted begin with them.

    Args:
        source: of the manifest.
        files: of the source.
        deadline: by `time.monotonic`, when to look no further.
    """
    tally = Tally()
    for file in _some(files):
        if time.monotonic() > deadline:
            return
        for _, row in islice(read_rows(source, [file]), _ROWS):
            if row.content is None and not row.fault:
                continue
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


def _some(files: Sequence[Path]) -> Sequence[Path]:
    """Return a few of many files, spread over all."""
    return files[:: -(-len(files) // _FILES)]


def _size(file: Path) -> int:
    """Return the bytes of a file, or of what `datasets` saved in a folder."""
    return sum(part.stat().st_size for part in file.rglob("*.arrow")) if file.is_dir() else file.stat().st_size


def _is_packed(source: Source, files: Sequence[Path]) -> bool:
    if source.format in ("parquet", "hf"):
        return source.format == "parquet"
    return any(is_packed(file) for file in _some(files))
