"""Token streams: each source as memory-mapped tokens, made once by one rank for all attempts of a run; checksummed.

A part of a source (train, held-out) is files of numbers: its tokens, where its documents begin and, of conversations,
which tokens are answers.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from arctic_workers.training.data import VERSION
from arctic_workers.training.data.tokenizer import Encoded, batches
from arctic_workers.training.data.windows import Conversations, Stream
from arctic_workers.training.files import sha256, sync_file, write_json

DATA_FOLDER = "data"
"""Of a run, with a folder for each of its sources."""
INDEX = "index.json"
PARTS = ("train", "held-out")
_DIGITS = 16
_PLACES = np.dtype("<u8")
_NO_INDEX = (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError)


class Document(Protocol):
    """A text, or what stands for one: its `str` is all that it says, its length about how much that is."""

    def __len__(self) -> int:
        """Return its size in characters, 0 if there is nothing in it."""
        ...


D = TypeVar("D", bound=Document)
D_contra = TypeVar("D_contra", bound=Document, contravariant=True)


class Encoder(Protocol[D_contra]):
    """Makes tokens of documents."""

    pad: int | None
    eos: int
    of_conversations: bool
    """Whether only answers in what it encodes are learnt."""

    @property
    def vocab_size(self) -> int:
        """Return how many tokens there are."""
        ...

    def encode_documents(self, documents: Iterable[D_contra]) -> Iterator[Encoded]:
        """Yield each document, in one piece or several."""
        ...


@dataclass(frozen=True)
class Prepared:
    """A source whose streams are written, and where."""

    name: str
    category: str
    folder: Path

    def content(self) -> "Content":
        """Return what is in them."""
        index = _index(self.folder)
        train, held_out = (index["parts"][part] for part in PARTS)
        return Content(
            tokens=train["tokens"],
            documents=train["documents"] + held_out["documents"],
            held_out_tokens=held_out["tokens"],
            skipped=index["source"].get("skipped", 0),
            unused_splits=tuple(index["source"].get("unusedSplits", ())),
        )


class Content(NamedTuple):
    """What the streams of a source hold."""

    tokens: int
    """To train on."""
    documents: int
    """All, those that are held out among them."""
    held_out_tokens: int
    skipped: int
    """Rows that were left out, because they had no usable text."""
    unused_splits: tuple[str, ...]


def folder_name(source: str, made_from: Sequence[Any]) -> str:
    """Return the name of the folder for a source's streams, which says all that they are made from."""
    return f"{source}-{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:_DIGITS]}"


def folders_of(source: str, run_folder: Path) -> list[Path]:
    """Return the folders that a run has by `folder_name` for a source, whatever they are made from.

    A digest alone follows the name: `web-2024-...` is not of `web`.
    """
    named = re.compile(rf"{re.escape(source)}-[0-9a-f]{{{_DIGITS}}}")
    return [folder for folder in (run_folder / DATA_FOLDER).glob("*") if named.fullmatch(folder.name)]


def is_held_out(document: Document, fraction: float) -> bool:
    """Return whether a document is for validation: by its content, so that a copy of it is never trained on."""
    return _place(document) < fraction


def is_of_share(document: Document, share: float) -> bool:
    """Return whether a document is of the share of a source that a run uses: by its content, whatever is held out."""
    return share >= 1 or _place(document, b"share") < share


def _place(document: Document, purpose: bytes = b"") -> float:
    digest = hashlib.blake2b(str(document).encode(), digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "big") / 2**64


def write_streams(
    folder: Path, encoder: Encoder[D], documents: Iterable[D], fraction: float, share: float = 1.0
) -> dict[str, int]:
    """Write the streams of one source into an existing folder, all but their index; returns the tokens of each part.

    `fraction` of the documents, by their content, are held out. Between 0 and 1 at least one is where there are two or
    more that differ, so that every such source can be judged. Of the others only the `share` is kept, by their content
    too.
    """
    with ExitStack() as stack:
        train, held_out = (stack.enter_context(_Writer(folder, part, encoder)) for part in PARTS)
        for kept, chosen in _divided(documents, fraction):
            train.append([document for document in kept if is_of_share(document, share)])
            held_out.append(chosen)
    parts = {writer.part: writer.describe() for writer in (train, held_out)}
    index = {"version": VERSION, "dtype": train.dtype.str, "parts": parts, "source": {}}
    if encoder.of_conversations:
        index["pad"] = encoder.eos if encoder.pad is None else encoder.pad
    write_json(folder / INDEX, index)
    return {part: described["tokens"] for part, described in parts.items()}


def note_source(folder: Path, skipped: int, unused_splits: Sequence[str]) -> None:
    """Keep, beside streams that are written, what their source had besides."""
    noted = {"skipped": skipped, "unusedSplits": list(unused_splits)}
    write_json(folder / INDEX, _index(folder) | {"source": noted})


class _Writer(ExitStack):
    """Writes one part."""

    def __init__(self, folder: Path, part: str, encoder: Encoder[Any]) -> None:
        super().__init__()
        self.part = part
        self.dtype = np.dtype("<u2") if encoder.vocab_size <= 2**16 else np.dtype("<u4")
        self._encoder = encoder
        self._paths = {kind: folder / f"{part}{ending}" for kind, ending in _FILES.items()}
        self._files = {kind: self.enter_context(path.open("wb")) for kind, path in self._paths.items()}
        self._tokens = self._documents = 0

    def append(self, documents: Sequence[Document]) -> None:
        for encoded in self._encoder.encode_documents(documents):
            if encoded.first:
                self._write("documents", [self._tokens], _PLACES)
                self._documents += 1
            spans = [self._tokens + place for span in encoded.answers for place in span]
            self._write("answers", spans, _PLACES)
            self._write("tokens", encoded.ids, self.dtype)
            self._tokens += len(encoded.ids)

    def _write(self, kind: str, numbers: Sequence[int], dtype: "np.dtype[Any]") -> None:
        self._files[kind].write(np.asarray(numbers, dtype=dtype).tobytes())

    def describe(self) -> dict[str, Any]:
        for path in self._paths.values():
            sync_file(path)
        files = {kind: {"file": path.name, "sha256": sha256(path)} for kind, path in self._paths.items()}
        return {"tokens": self._tokens, "documents": self._documents, "files": files}


_FILES = {"tokens": ".bin", "documents": ".documents.bin", "answers": ".answers.bin"}
"""What a part's files hold, and how their names end."""


def _divided(documents: Iterable[D], fraction: float) -> Iterator[tuple[list[D], list[D]]]:
    """Yield batch after batch the documents that are trained on, and those that are held out: all but empty ones."""
    groups = batches(filter(len, documents), len, least=2)  # of one document none could be chosen
    first = next(groups, [])
    chosen = _choice(first, fraction)
    for batch in chain([first], groups):
        parts: tuple[list[D], list[D]] = ([], [])
        for document in batch:
            parts[chosen(document)].append(document)
        yield parts


def _choice(first: Sequence[Document], fraction: float) -> Callable[[Document], bool]:
    """Return what says whether a document is held out: by its content, of a source that begins with these documents.

    Between 0 and 1 of those that differ at least one is held out and one is not, even if `is_held_out` says otherwise.
    """
    places = {_place(document) for document in first}
    below = sum(place < fraction for place in places)
    if not 0 < fraction < 1 or 0 < below < len(places):
        return partial(is_held_out, fraction=fraction)
    least = min(places) if len(places) > 1 else None

    def chosen(document: Document) -> bool:
        place = _place(document)
        return place == least if place in places else place < fraction

    return chosen


def is_whole(folder: Path) -> bool:
    """Return whether a folder's streams are all there and as they were written; OSError if that can't be told."""
    try:
        return all(sha256(folder / file["file"]) == file["sha256"] for file in _files(folder))
    except _NO_INDEX:
        return False


def digests(folder: Path) -> list[str] | None:
    """Return the digests of a folder's files when they were written, None where there is no index that says them."""
    try:
        return [file["sha256"] for file in _files(folder)]
    except _NO_INDEX:
        return None


def stream_files(folder: Path) -> list[Path]:
    """Return what the index names, there or not; FileNotFoundError, ValueError or the like where it names nothing."""
    return [folder / file["file"] for file in _files(folder)]


def _files(folder: Path) -> list[dict[str, Any]]:
    return [file for part in _index(folder)["parts"].values() for file in part["files"].values()]


def open_streams(sources: Iterable[Prepared], part: str) -> dict[str, Stream]:
    """Return the streams that are not empty, by source, mapped into memory; `part`: train or held-out."""
    streams: dict[str, Stream] = {}
    for source in sources:
        index = _index(source.folder)
        content = index["parts"][part]
        if not content["tokens"]:
            continue
        files = {kind: source.folder / file["file"] for kind, file in content["files"].items()}
        tokens = np.memmap(files["tokens"], dtype=np.dtype(index["dtype"]), mode="r")
        documents = np.fromfile(files["documents"], _PLACES).astype(np.int64)
        if "pad" in index:
            answers = np.fromfile(files["answers"], _PLACES).astype(np.int64).reshape(-1, 2)
            streams[source.name] = Conversations(
                source.name, source.category, tokens, documents, answers=answers, pad=index["pad"]
            )
        else:
            streams[source.name] = Stream(source.name, source.category, tokens, documents)
    return streams


def _index(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((folder / INDEX).read_text())
    return index
