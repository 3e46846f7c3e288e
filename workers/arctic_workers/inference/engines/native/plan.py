"""What a group's manifest means for this engine, checked before anything is loaded. Reads config.json, no more."""

from dataclasses import dataclass
from pathlib import Path

from arctic_api.inference import Attention
from arctic_api.world import InferenceGroup
from arctic_model.config import ArcticConfig
from arctic_model.parallel import LayerSlice, plan_inference
from arctic_workers.inference.engine import Refused

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
    if len(group.hosts) != spec.parallelism.pipeline:
        raise Refused(f"the group has {len(group.hosts)} hosts and parallelism.pipeline is {spec.parallelism.pipeline}")
    if "://" in group.model_folder:
        raise Refused(f"{group.model_folder} is not yet supported; write model.uri: file:///FOLDER of a claim")
    folder = Path(group.locate(group.model_folder))
    try:
        config = ArcticConfig.from_folder(folder)
        shared = plan_inference(config, pipeline=spec.parallelism.pipeline)
    except ValueError as error:
        raise Refused(str(error)) from None
    return Plan(
        folder=folder,
        config=config,
        slices=shared.slices,
        weights=spec.quantization.weights,
        kv_cache=spec.quantization.kv_cache,
        max_length=_max_length(spec.attention, config),
        max_sequences=spec.batching.max_sequences,
        token_budget=spec.batching.token_budget,
        memory_fraction=spec.batching.kv_cache.memory_fraction,
    )


def _max_length(attention: Attention, config: ArcticConfig) -> int:
    """Most tokens of a request. Raises Refused where the model does not reach as far as was asked for."""
    asked, positions, window = int(attention.max_length), config.max_position_embeddings, config.sliding_window
    # A manifest comes with the default filled in, so nobody can tell whether it was written: it gives way.
    if asked > positions and asked != Attention().max_length:
        raise Refused(
            f"attention.maxLength is {asked} and the model has {positions} positions; "
            f"write attention.maxLength: {positions} or less"
        )
    length = min(asked, positions)
    if window is not None and window < length:
        raise Refused(
            f"the model's sliding_window {window} is not yet supported by the native engine; "
            f"write attention.maxLength: {window} or less"
        )
    return length
