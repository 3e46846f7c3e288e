"""What a training starts from: the model's configuration, and weights that were trained before."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from arctic_api.training import Upcycle
from arctic_api.world import TrainingWorld
from arctic_model.config import ArcticConfig
from arctic_model.llama import Grown, open_llama
from arctic_model.quantization import unrounded_config
from arctic_model.upcycle import grown_config
from arctic_model.weights import Checkpoint, Weights
from arctic_workers.training.checkpoint.store import CheckpointStore, Manifest
from arctic_workers.training.data.sources import file_path
from arctic_workers.training.data.tokenizer import TextEncoder
from arctic_workers.training.errors import Refused, checked

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """The model before the first step."""

    config: ArcticConfig
    weights: Weights | None
    """None for fresh ones, from the seed."""
    place: Path | None = None
    """Folder or file of the weights."""


def find_start(world: TrainingWorld, kept: ArcticConfig | None = None) -> Start:
    """Return what the manifest names; raises `Refused` where it isn't there, or isn't a model that can be trained.

    Where the run has a checkpoint to go on from, `kept` is the configuration in it (`kept_config`): weights that all
    are in checkpoints are not read again then, and may be gone. What an adapter stands on is in none.
    """
    if kept is None or world.spec.model.adapter is not None:
        return _find_named(world)
    try:
        return replace(_find_named(world), weights=None)
    except Refused as refusal:
        log.info("the run goes on from its checkpoint without what it began from: %s", refusal)
        return Start(kept, None)


def kept_config(store: CheckpointStore) -> ArcticConfig | None:
    """Return the model's configuration by the newest checkpoint that has it, None where none has."""
    manifests = filter(None, map(Manifest.read, store.candidates()))
    content = next((manifest.progress["config"] for manifest in manifests if "config" in manifest.progress), None)
    return None if content is None else checked(lambda: ArcticConfig.from_dict(content, "the run's checkpoint"))


def _find_named(world: TrainingWorld) -> Start:
    found, scaling = _find_model(world), world.spec.model.rope_scaling
    if scaling is None:
        return found
    return replace(found, config=checked(lambda: found.config.stretched(scaling.type, scaling.factor)))


def _find_model(world: TrainingWorld) -> Start:
    model = world.spec.model
    if model.preset is not None:
        preset = model.preset
        return Start(checked(lambda: ArcticConfig.preset(preset)), None)
    if model.config is not None:
        content = model.config
        return Start(checked(lambda: ArcticConfig.from_dict(content, "model.config")), None)
    place = weights_place(world)
    assert place is not None, "the resource's rules ask for one of preset, config and from"
    return checked(lambda: _start_from(place, model.upcycle, world.spec.seed))


def _start_from(place: Path, upcycle: Upcycle | None, seed: int) -> Start:
    if place.is_dir():
        config = unrounded_config(place)
        if upcycle is None:
            return Start(config, Checkpoint(place), place)
    source = open_llama(place)
    config = source.config
    if upcycle is not None:
        config = grown_config(config, experts=upcycle.experts, every=upcycle.every, chosen=upcycle.top_k)
    return Start(config, Grown(source, config, seed), place)


def weights_place(world: TrainingWorld) -> Path | None:
    """Return the folder or file of the weights that the training starts from, None for fresh ones."""
    start = world.spec.model.from_
    if start is None:
        return None
    if start.uri is not None:
        return file_path(start.uri, world.locate, "model.from")
    if world.weights_folder is None:
        raise Refused("WeightsNotFound", f"model.from: the training {start.training} has no export")
    return Path(world.locate(world.weights_folder))


def fit_vocabulary(world: TrainingWorld, config: ArcticConfig, encoder: TextEncoder) -> ArcticConfig:
    """Return the configuration for a tokenizer: a preset takes its size, any other must have room for it.

    A model that ends its answers with several tokens, the tokenizer's among them, keeps all of them.
    """
    if world.spec.model.preset is not None:
        config = config.with_vocab_size(encoder.vocab_size)
    if encoder.vocab_size > config.vocab_size:
        raise Refused(
            "VocabularyTooLarge",
            f"the tokenizer has {encoder.vocab_size} entries and the model's vocab_size is {config.vocab_size}",
        )
    ends = config.eos_token_id
    keeps = isinstance(ends, list) and encoder.eos in ends
    return config.replace(bos_token_id=encoder.bos, eos_token_id=ends if keeps else encoder.eos)
