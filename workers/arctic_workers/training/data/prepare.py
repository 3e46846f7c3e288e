"""What one rank does once for a run, before the first step: the tokenizer, then the token streams of all sources."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arctic_api.common import parse_tokens
from arctic_api.training import ArcticTrainingSpec, Source
from arctic_api.world import TrainingWorld
from arctic_workers.training.checkpoint.store import CheckpointStore
from arctic_workers.training.data import streams, tokenizer
from arctic_workers.training.data.sources import file_path, read_documents
from arctic_workers.training.errors import Refused
from arctic_workers.training.files import sha256, sync_files, write_json

TOKENIZER_FOLDER = "tokenizer"
DATA_FOLDER = "data"
ORIGIN = "origin.json"
"""What the tokenizer was made from, beside it."""


def prepare(world: TrainingWorld, store: CheckpointStore) -> Path:
    """Make what is missing of the run's tokenizer and token streams, and return the folder of the streams.

    Streams are named by what they were made from, and stay as they are for the life of the run, even if a source's
    files change. Raises `Refused` for a source or tokenizer that can't be used, `Fenced` under a stale epoch.

    Args:
        world: what is trained.
        store: of the run, claimed by this attempt.
    """
    tokenizer_folder = store.run_folder / TOKENIZER_FOLDER
    if not (tokenizer_folder / "tokenizer.json").is_file():
        _make_folder(store, tokenizer_folder, lambda folder: _make_tokenizer(world, folder))
    _check_origin(world.spec, tokenizer_folder)
    folder = store.run_folder / DATA_FOLDER / _data_key(world.spec, tokenizer_folder)
    if not streams.is_whole(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        _make_folder(store, folder, lambda target: _make_streams(world, tokenizer_folder, target))
    return folder


def source_weights(spec: ArcticTrainingSpec) -> dict[str, float]:
    """Return how many tokens the curriculum takes from each source, about."""
    totals = dict.fromkeys((source.name for source in spec.data.sources), 0.0)
    for stage in spec.curriculum.stages:
        whole = sum(stage.mixture.values())
        for name, weight in stage.mixture.items():
            totals[name] += parse_tokens(stage.tokens) * weight / whole
    return {name: total for name, total in totals.items() if total > 0}


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
            "TokenizerMismatch",
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
    tokenizer.copy(_given_tokenizer(world), folder)


def _given_tokenizer(world: TrainingWorld) -> Path:
    """Return the folder of a tokenizer that exists: the one that is named, else the one beside the starting weights."""
    spec = world.spec
    if spec.tokenizer is not None and spec.tokenizer.uri is not None:
        return file_path(spec.tokenizer.uri, world.locate, "tokenizer")
    if spec.model.from_ is not None and spec.model.from_.uri is not None:
        return file_path(spec.model.from_.uri, world.locate, "model.from")
    if world.weights_folder is not None:
        return Path(world.locate(world.weights_folder))
    raise Refused("TokenizerNotFound", "tokenizer: write tokenizer.train or tokenizer.uri")


def _data_key(spec: ArcticTrainingSpec, tokenizer_folder: Path) -> str:
    used = sorted(source_weights(spec))  # a stage to come may begin to draw from another source
    made_from = [spec.data.wire(), used, sha256(tokenizer_folder / "tokenizer.json")]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def _make_streams(world: TrainingWorld, tokenizer_folder: Path, folder: Path) -> None:
    data = world.spec.data
    writer = streams.StreamWriter(folder, tokenizer.TextEncoder(tokenizer_folder))
    used = source_weights(world.spec)
    entries = {}
    for source in data.sources:
        if source.name in used:
            fraction = data.validation.fraction or 0.0
            entries[source.name] = writer.write(
                source.name, source.category, read_documents(source, world.locate), fraction
            )
            if not entries[source.name]["parts"]["train"]["tokens"]:
                raise _empty(source)
    for source in data.validation.sources or []:
        # Text that is only for validation: everything is held out, and its name may be that of a training source.
        entry = writer.write(f"validation.{source.name}", source.category, read_documents(source, world.locate), 0.0)
        if not entry["parts"]["train"]["tokens"]:
            raise _empty(source)
        entries[f"validation.{source.name}"] = entry | {"parts": {"held-out": entry["parts"]["train"]}}
    streams.write_index(folder, entries)


def _empty(source: Source) -> Refused:
    return Refused("SourceEmpty", f"source {source.name}: there is no text in {source.uri}")
