"""What one rank does once for a run, before the first step: the tokenizer, then the token streams of all sources."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from arctic_api.training import ArcticTrainingSpec, Source
from arctic_api.world import TOKENIZER_MISMATCH, TrainingWorld
from arctic_model.llama import open_llama
from arctic_workers.training.checkpoint.store import CheckpointStore
from arctic_workers.training.curriculum import source_share, source_weights
from arctic_workers.training.data import VERSION, tokenizer
from arctic_workers.training.data.checked import is_as_written, keep_stamps
from arctic_workers.training.data.conversations import ConversationEncoder
from arctic_workers.training.data.sources import (
    Tally,
    file_path,
    read_contents,
    read_documents,
    source_files,
    unused_splits,
)
from arctic_workers.training.data.streams import (
    DATA_FOLDER,
    Prepared,
    digests,
    folder_name,
    folders_of,
    note_source,
    write_streams,
)
from arctic_workers.training.data.survey import check_beginnings
from arctic_workers.training.data.tokenizer import TextEncoder
from arctic_workers.training.errors import Refused, checked
from arctic_workers.training.files import sha256, sync_files, write_json
from arctic_workers.training.start import weights_place

log = logging.getLogger(__name__)

TOKENIZER_FOLDER = "tokenizer"
ORIGIN = "origin.json"
"""What the tokenizer was made from, beside it."""


@dataclass(frozen=True)
class _Text:
    """What streams are made from."""

    name: str
    source: Source
    fraction: float
    """Of its documents that is held out."""
    share: float
    """Of the others that is used."""

    def folder_name(self, tokenizer_digest: str) -> str:
        """Return a name that says all that the tokens follow from, and nothing else of the manifest."""
        source = self.source
        read = [source.uri, source.format, source.content, source.field, source.split]
        return folder_name(self.name, [VERSION, *read, self.fraction, tokenizer_digest, self.share])


def prepare(world: TrainingWorld, store: CheckpointStore) -> list[Prepared]:
    """Make what is missing of the run's tokenizer and token streams, and return where the streams are.

    Each source has a folder, named by what it was made from, which stays as it is for the life of the run, even if the
    source's files change or the manifest uses it no more: an edit that is taken back must find the tokens that the run
    has trained on. Raises `Refused` for a source or tokenizer that can't be used, `Fenced` under a stale epoch.

    Args:
        world: what is trained.
        store: of the run, claimed by this attempt.
    """
    tokenizer_folder = store.run_folder / TOKENIZER_FOLDER
    data_folder = store.run_folder / DATA_FOLDER
    texts = _texts(world.spec)
    for text in texts:
        if not folders_of(text.name, store.run_folder):  # a wrong source is named before hours go into another one
            check_beginnings(text.source, source_files(text.source, world.locate))
    if not (tokenizer_folder / "tokenizer.json").is_file():
        _make_folder(store, tokenizer_folder, lambda folder: _make_tokenizer(world, folder))
    _check_origin(world.spec, tokenizer_folder)
    encoder = TextEncoder(tokenizer_folder)
    digest = sha256(tokenizer_folder / "tokenizer.json")
    data_folder.mkdir(exist_ok=True)
    prepared = []
    for text in texts:
        folder = data_folder / text.folder_name(digest)
        if not is_as_written(folder):
            before = digests(folder)
            _make_folder(store, folder, partial(_make_streams, world, text, encoder))
            keep_stamps(folder)
            if before not in (None, digests(folder)):
                log.warning(
                    "source %s: its tokens were damaged, and %s has another text now: what the run trains on from here "
                    "are other tokens than it began with",
                    *(text.name, text.source.uri),
                )
        prepared.append(Prepared(text.name, text.source.category, folder))
    return prepared


def _make_folder(store: CheckpointStore, path: Path, fill: Callable[[Path], None]) -> None:
    """Fill a staged folder, which the next claim removes if this attempt ends here, and name it once it is whole."""
    staged = store.stage(path.name)
    try:
        fill(staged)
        sync_files(staged)
        store.publish(path.name, path)
    except OSError as error:
        raise store.explain(error) from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _origin(spec: ArcticTrainingSpec) -> dict[str, Any]:
    """Return what of a manifest says where the tokenizer comes from."""
    if spec.tokenizer is not None:
        return {"tokenizer": spec.tokenizer.wire()}
    return {"model.from": None if spec.model.from_ is None else spec.model.from_.wire()}


def _check_origin(spec: ArcticTrainingSpec, folder: Path) -> None:
    """Refuse a manifest that asks for another tokenizer than the one that the run has."""
    path = folder / ORIGIN
    kept = json.loads(path.read_bytes()) if path.is_file() else _origin(spec)
    if kept != _origin(spec):
        raise Refused(
            TOKENIZER_MISMATCH,
            f"the run's tokenizer was made from {json.dumps(kept)}, and the manifest says {json.dumps(_origin(spec))}: "
            "a run keeps its tokenizer; write the old one again, or make another training",
        )


def _make_tokenizer(world: TrainingWorld, folder: Path) -> None:
    spec = world.spec
    write_json(folder / ORIGIN, _origin(spec))
    if spec.tokenizer is not None and spec.tokenizer.train is not None:
        vocab_size = spec.tokenizer.train.vocab_size
        by_name = {source.name: source for source in spec.data.sources}
        sample = tokenizer.sample_texts(
            source_weights(spec),
            lambda name: read_documents(by_name[name], world.locate),
            vocab_size * tokenizer.SAMPLE_BYTES_PER_ENTRY,
        )
        tokenizer.save(tokenizer.train(sample, vocab_size), folder)
        return
    given = _given_tokenizer(world)
    if given.is_file():
        checked(lambda: open_llama(given).write_tokenizer(folder))  # a GGUF file has its tokenizer in it
        return
    tokenizer.copy(given, folder)


def _given_tokenizer(world: TrainingWorld) -> Path:
    """Return the folder of a tokenizer that exists: the one that is named, else the one beside the starting weights."""
    spec = world.spec
    if spec.tokenizer is not None and spec.tokenizer.uri is not None:
        return file_path(spec.tokenizer.uri, world.locate, "tokenizer")
    if (place := weights_place(world)) is not None:
        return place
    raise Refused("TokenizerNotFound", "tokenizer: write tokenizer.train or tokenizer.uri")


def _texts(spec: ArcticTrainingSpec) -> list[_Text]:
    """Return what streams the run needs: of the sources that it trains on, and of those that are only for validation.

    The latter are held out whole, and may have the name of a source that is trained on.
    """
    used = source_weights(spec)  # of all stages: one to come may begin to draw from another source
    validation = spec.data.validation
    share = source_share(spec)
    trained_on = [_Text(s.name, s, validation.fraction or 0.0, share) for s in spec.data.sources if s.name in used]
    return trained_on + [_Text(f"validation.{s.name}", s, 1.0, 1.0) for s in validation.sources or []]


def _make_streams(world: TrainingWorld, text: _Text, encoder: TextEncoder, folder: Path) -> None:
    source, tally = text.source, Tally()
    if source.content == "messages":
        chat = ConversationEncoder(encoder.folder)
        conversations = read_contents(source, world.locate, tally, chat.conversation)
        tokens = write_streams(folder, chat, conversations, text.fraction, text.share)
    else:
        tokens = write_streams(folder, encoder, read_documents(source, world.locate, tally), text.fraction, text.share)
    splits = unused_splits(source, world.locate)
    note_source(folder, tally.skipped, splits)
    if tally.skipped:
        log.warning(
            "source %s: %d of %d rows have no usable content and are left out; the first: %s",
            *(source.name, tally.skipped, tally.rows, tally.first_skipped),
        )
    if splits:
        log.warning("source %s: not read are its splits %s", source.name, ", ".join(splits))
    if not tokens["train" if text.fraction < 1 else "held-out"]:
        raise Refused("SourceEmpty", f"source {source.name}: there is no text in {source.uri}")
