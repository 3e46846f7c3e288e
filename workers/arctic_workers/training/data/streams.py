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


class StreamWriter:
    """Writes the streams of one source: trained on, and held out."""

    def __init__(self, folder: Path, encoder: TextEncoder) -> None:
        self._folder = folder
        self._encoder = encoder
        self._dtype = np.dtype("<u2") if encoder.vocab_size <= 2**16 else np.dtype("<u4")

    def write(self, name: str, category: str, documents: Iterable[str], fraction: float) -> dict[str, Any]:
        """Write one source and return its entry for the index.

        `fraction` of the documents, by their content, are held out: at least one where there are two or more, so that
        every such source can be judged; none with a fraction of 0.
        """
        files = {part: self._folder / f"{name}.{part}.bin" for part in ("train", "held-out")}
        counts = dict.fromkeys(files, 0)
        groups = batches(documents, len, least=2)  # of one document none could be chosen
        with files["train"].open("wb") as train, files["held-out"].open("wb") as held_out:
            if fraction:
                first = next(groups, [])
                chosen = _chosen(first, fraction)
                counts["held-out"] += self._append(held_out, [first[i] for i in sorted(chosen)])
                counts["train"] += self._append(train, [text for i, text in enumerate(first) if i not in chosen])
            for batch in groups:
                kept = [text for text in batch if not is_held_out(text, fraction)]
                counts["train"] += self._append(train, kept)
                counts["held-out"] += self._append(held_out, [text for text in batch if is_held_out(text, fraction)])
        return {
            "category": category,
            "dtype": self._dtype.str,
            "parts": {part: _describe(path, counts[part]) for part, path in files.items()},
        }

    def _append(self, file: BinaryIO, texts: list[str]) -> int:
        tokens = 0
        for ids in self._encoder.encode_documents(text for text in texts if text):
            file.write(np.asarray(ids, dtype=self._dtype).tobytes())
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


def write_index(folder: Path, sources: dict[str, Any]) -> None:
    """Write what the streams of a folder are."""
    write_json(folder / INDEX, {"version": 1, "sources": sources})


def is_whole(folder: Path) -> bool:
    """Return whether a folder's streams are all there and as they were written; OSError if that can't be told."""
    try:
        parts = list(_parts(folder))
        return all(sha256(folder / part["file"]) == part["sha256"] for _, _, part in parts)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def open_streams(folder: Path, part: str) -> dict[str, Stream]:
    """Return the streams of a folder that are not empty, by source, mapped into memory; `part`: train or held-out."""
    streams = {}
    for name, entry, content in _parts(folder):
        if content["tokens"] and content is entry["parts"].get(part):
            tokens = np.memmap(folder / content["file"], dtype=np.dtype(entry["dtype"]), mode="r")
            streams[name] = Stream(name, entry["category"], tokens)
    return streams


def _parts(folder: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    index = json.loads((folder / INDEX).read_text())
    for name, entry in index["sources"].items():
        for content in entry["parts"].values():
            yield name, entry, content
