"""Token streams: each source as memory-mapped tokens, made once by one rank for all attempts of a run; checksummed."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from arctic_workers.training.data.tokenizer import TextEncoder, batches
from arctic_workers.training.files import sha256, sync_file, write_json

INDEX = "index.json"

Tokens = npt.NDArray[np.uint16 | np.uint32]


@dataclass(frozen=True)
class Prepared:
    """A source whose streams are written, and where."""

    name: str
    category: str
    folder: Path


@dataclass(frozen=True)
class Stream:
    """The tokens of one source, document after document."""

    name: str
    category: str
    tokens: Tokens

    def window(self, index: int, length: int) -> npt.NDArray[np.int64]:
        """Return tokens [index x length, (index + 1) x length], both ends included: each token's label is the next one.

        A stream goes round: a source that is shorter than a sequence is repeated.
        """
        places = np.arange(index * length, (index + 1) * length + 1) % len(self.tokens)
        return np.asarray(self.tokens[places], np.int64)

    def windows(self, length: int) -> int:
        """Return how many windows cover the stream without overlap, at least one."""
        return max(1, (len(self.tokens) - 1) // length)


def is_held_out(text: str, fraction: float) -> bool:
    """Return whether a document is for validation: by its content, so that a copy of it is never trained on."""
    return _place(text) < fraction


def _place(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def write_streams(folder: Path, encoder: TextEncoder, documents: Iterable[str], fraction: float) -> dict[str, int]:
    """Write the streams of one source and their index into an existing folder; returns the tokens of each part.

    `fraction` of the documents, by their content, are held out. Between 0 and 1 at least one is where there are two or
    more, so that every such source can be judged.
    """
    dtype = np.dtype("<u2") if encoder.vocab_size <= 2**16 else np.dtype("<u4")
    files = {part: folder / f"{part}.bin" for part in ("train", "held-out")}
    counts = dict.fromkeys(files, 0)
    with files["train"].open("wb") as train, files["held-out"].open("wb") as held_out:
        for kept, chosen in _divided(documents, fraction):
            counts["train"] += _append(train, kept, encoder, dtype)
            counts["held-out"] += _append(held_out, chosen, encoder, dtype)
    parts = {part: _describe(path, counts[part]) for part, path in files.items()}
    write_json(folder / INDEX, {"version": 1, "dtype": dtype.str, "parts": parts})
    return counts


def _divided(documents: Iterable[str], fraction: float) -> Iterator[tuple[list[str], list[str]]]:
    """Yield batch after batch the documents that are trained on, and those that are held out."""
    groups = batches(documents, len, least=2)  # of one document none could be chosen
    if 0 < fraction < 1:
        first = next(groups, [])
        chosen = _chosen(first, fraction)
        yield [text for i, text in enumerate(first) if i not in chosen], [first[i] for i in sorted(chosen)]
    for batch in groups:
        kept = [text for text in batch if not is_held_out(text, fraction)]
        yield kept, [text for text in batch if is_held_out(text, fraction)]


def _append(file: BinaryIO, texts: list[str], encoder: TextEncoder, dtype: "np.dtype[Any]") -> int:
    tokens = 0
    for ids in encoder.encode_documents(text for text in texts if text):
        file.write(np.asarray(ids, dtype=dtype).tobytes())
        tokens += len(ids)
    return tokens


def _chosen(texts: list[str], fraction: float) -> set[int]:
    """Return which of a source's first documents are held out, at least one if there are two."""
    chosen = {i for i, text in enumerate(texts) if is_held_out(text, fraction)}
    if len(chosen) == len(texts):
        chosen = set()
    if not chosen and len(texts) > 1:
        chosen = {min(range(len(texts)), key=lambda i: (_place(texts[i]), i))}
    return chosen


def _describe(path: Path, tokens: int) -> dict[str, Any]:
    sync_file(path)
    return {"file": path.name, "tokens": tokens, "sha256": sha256(path)}


def is_whole(folder: Path) -> bool:
    """Return whether a folder's streams are all there and as they were written; OSError if that can't be told."""
    try:
        return all(sha256(folder / part["file"]) == part["sha256"] for part in _index(folder)["parts"].values())
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def open_streams(sources: Iterable[Prepared], part: str) -> dict[str, Stream]:
    """Return the streams that are not empty, by source, mapped into memory; `part`: train or held-out."""
    streams = {}
    for source in sources:
        index = _index(source.folder)
        content = index["parts"][part]
        if content["tokens"]:
            tokens = np.memmap(source.folder / content["file"], dtype=np.dtype(index["dtype"]), mode="r")
            streams[source.name] = Stream(source.name, source.category, tokens)
    return streams


def _index(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((folder / INDEX).read_text())
    return index
