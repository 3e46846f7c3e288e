"""What a group's manifest means for this engine, checked before anything is loaded. Reads config.json, no more."""

from dataclasses import dataclass
from pathlib import Path

from arctic_api.world import InferenceGroup
from arctic_model.config import ArcticConfig
from arctic_model.parallel import LayerSlice, plan_inference
from arctic_workers.inference.engine import Refused
from arctic_workers.inference.model import QUANTIZATION, max_length, read_model

BLOCK_SIZE = 16
"""Tokens of a block of the cache."""


@dataclass(frozen=True)
class Plan:
    """What every rank of a group needs to know; all ranks compute the same."""

    folder: Path
    config: ArcticConfig
    slices: tuple[LayerSlice, ...]
    """By pipeline rank."""
    weights: str
    kv_cache: str
    max_length: int
    max_sequences: int
    token_budget: int
    memory_fraction: float

    @property
    def ranks(self) -> int:
        """Pipeline ranks."""
        return len(self.slices)

    @property
    def most_blocks(self) -> int:
        """Blocks that all sequences need at their longest."""
        return self.max_sequences * -(-self.max_length // BLOCK_SIZE)

    def block_bytes(self, rank: int) -> int:
        """Bytes of one block on a rank: keys and values of its layers."""
        itemsize = {"bf16": 2, "fp32": 4}[self.kv_cache]
        token = 2 * len(self.slices[rank].layers) * self.config.num_key_value_heads * self.config.head_dim * itemsize
        return BLOCK_SIZE * token


def plan_group(group: InferenceGroup) -> Plan:
    """Check a group against this engine and its model. Raises Refused."""
    spec = group.spec
    model = read_model(group)
    if model.quantized:
        raise Refused(f"{model.folder}: {QUANTIZATION} is set: save the checkpoint unquantised, without it")
    try:
        shared = plan_inference(model.config, pipeline=spec.parallelism.pipeline)
    except ValueError as error:
        raise Refused(str(error)) from None
    return Plan(
        folder=model.folder,
        config=model.config,
        slices=shared.slices,
        weights=spec.quantization.weights,
        kv_cache=spec.quantization.kv_cache,
        max_length=_within_window(max_length(spec.attention, model.config), model.config),
        max_sequences=spec.batching.max_sequences,
        token_budget=spec.batching.token_budget,
        memory_fraction=spec.batching.kv_cache.memory_fraction,
    )


def _within_window(length: int, config: ArcticConfig) -> int:
    window = config.sliding_window
    if window is not None and window < length:
        raise Refused(
            f"the model's sliding_window {window} is not yet supported by the native engine; "
            f"write attention.maxLength: {window} or less"
        )
    return length
