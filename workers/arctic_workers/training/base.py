"""The frozen weights that an adapter stands on: which they are, and that they stay the same."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from arctic_api.training import Lora
from arctic_api.world import CHECKPOINT_MISMATCH
from arctic_model.llama import is_llama
from arctic_workers.training.engine import Ranks
from arctic_workers.training.errors import Refused
from arctic_workers.training.files import sha256

_CONTENT = ("config.json", "*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True)
class Base:
    """What an adapter was trained on, and how it is added."""

    place: Path
    digest: str
    lora: Lora
    is_llama: bool = False
    """Whether it goes by a Llama's names: the adapter has those of what it stands on."""

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: an adapter means nothing on other weights."""
        return {"weights": self.digest, "alpha": self.lora.alpha}

    def check_same(self, kept: dict[str, Any] | None, step: int) -> None:
        """Refuse to go on from a checkpoint whose adapter stands on other weights, or is added otherwise."""
        if kept == self.to_json():
            return
        raise Refused(
            CHECKPOINT_MISMATCH,
            f"the adapter of the checkpoint of step {step} was trained on {json.dumps(kept)}, and {self.place} with "
            f"the manifest is {json.dumps(self.to_json())}: put the old weights back, or make another training",
        )


def find_base(place: Path | None, lora: Lora | None, ranks: Ranks) -> Base | None:
    """Return the base of an adapter, None without one; each rank reads its share of the files. Collective."""
    if lora is None:
        return None
    assert place is not None, "the resource's rules ask for model.from beside an adapter"
    digests: list[dict[str, str]] = [{}] * ranks.world
    dist.all_gather_object(digests, digests_of(place, ranks.rank, ranks.world))
    together = {name: digest for share in digests for name, digest in share.items()}
    digest = hashlib.sha256(json.dumps(together, sort_keys=True).encode()).hexdigest()
    return Base(place, digest, lora, is_llama(place))


def digests_of(place: Path, part: int, parts: int) -> dict[str, str]:
    """Return the digest of every `parts`-th file that makes up a model's weights, from `part` on, by its name."""
    files = sorted({file for pattern in _CONTENT for file in place.glob(pattern)}) if place.is_dir() else [place]
    return {file.name: sha256(file) for file in files[part::parts]}
