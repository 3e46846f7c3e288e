"""What a group's manifest means for this engine, checked before anything is loaded. Reads config.json, no more."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from arctic_api.common import RopeScaling, parse_duration
from arctic_api.engine_options import EngineOptions, PipelineFormat
from arctic_api.inference import Attention, PrefixCaching
from arctic_api.uris import path_of
from arctic_api.world import InferenceGroup
from arctic_model.config import ArcticConfig
from arctic_model.parallel import LayerSlice, plan_inference
from arctic_model.planning.devices import Format
from arctic_model.planning.serving import vector_bytes
from arctic_model.quantization import read_quantization
from arctic_workers.inference.engine import Refused
from arctic_workers.inference.engines.native.blocks import BLOCK_SIZE
from arctic_workers.inference.engines.native.kernel.panels import LANES
from arctic_workers.inference.engines.native.window import Window
from arctic_workers.inference.model import max_length, read_model


@dataclass(frozen=True)
class Plan:
    """What every rank of a group needs to know; all ranks compute the same."""

    folder: Path
    adapters: Mapping[str, Path]
    """Folders of the adapters beside it, by the names that they are served under."""
    config: ArcticConfig
    slices: tuple[LayerSlice, ...]
    """By pipeline rank."""
    tensor: int
    """Ranks of each pod: shares of its threads, or processes with a GPU each, with a share of the weights each."""
    whole_experts: bool
    """Whether such a rank has experts of its own, rather than a slice of each."""
    weights: str
    kv_cache: Format
    max_length: int
    window: Window | None
    """What attention sees, where a request can be longer."""
    max_sequences: int
    token_budget: int
    target_between_tokens: float | None
    """Seconds."""
    prefix_caching: PrefixCaching
    suffix_decoding: bool
    memory_fraction: float
    pipeline_format: PipelineFormat
    """Of hidden states between pipeline ranks."""
    rounds_large_steps: bool
    """Whether steps of many rows round these to FP8, which GPUs multiply."""
    rounds_rows: bool
    """Whether rows are rounded to bf16, which some CPUs multiply."""

    @property
    def ranks(self) -> int:
        """Pipeline ranks."""
        return len(self.slices)

    @property
    def blocks_of_a_sequence(self) -> int:
        """Blocks that one sequence needs at its longest."""
        whole = -(-self.max_length // BLOCK_SIZE)
        return whole if self.window is None else min(whole, self.window.blocks(BLOCK_SIZE))

    @property
    def most_blocks(self) -> int:
        """Blocks that all sequences need at their longest."""
        return self.max_sequences * self.blocks_of_a_sequence

    def block_bytes(self, rank: int, processes: int = 1) -> int:
        """Bytes of one block on a rank: keys and values of its layers, whose heads so many processes share out."""
        vector = vector_bytes(self.config, self.kv_cache, scaled=True)
        heads = self.config.num_key_value_heads // processes
        return BLOCK_SIZE * 2 * len(self.slices[rank].layers) * heads * vector

    def check_device(self, *, gpu: bool, multiplies_bf16: Callable[[], bool]) -> None:
        """Check what depends on where a pod computes, and on what its CPU multiplies. Raises Refused."""
        other = None if self.weights == "fp8" else f"quantization.weights is {self.weights}"
        if self.rounds_large_steps:
            if not gpu:
                raise Refused(
                    "engine.options.large_step_format is fp8 and this pod sees no GPU: CPUs multiply all bits; leave "
                    "it out, or ask for nvidia.com/gpu in resources"
                )
            _check_alone("large_step_format is fp8", "enable_expert_parallel is true" if self.whole_experts else other)
        if self.rounds_rows:
            if gpu:
                raise Refused("engine.options.row_format is for CPUs and this pod computes on a GPU: leave it out")
            _check_alone("row_format is bf16", other)
            if not multiplies_bf16():
                raise Refused(
                    "engine.options.row_format is bf16, which this pod's processor does not multiply, or no code was "
                    "built for it: it takes AVX-512 with BF16 and VBMI; leave it out, or choose nodes that have it"
                )

    def check_processes(self, gpus: int) -> None:
        """Check that tensor ranks can be processes of a pod that has so many GPUs. Raises Refused."""
        if self.tensor > gpus:
            raise Refused(
                f"parallelism.tensor is {self.tensor} and this pod has {gpus} GPU{'s' * (gpus != 1)}: a tensor rank "
                f"takes one; write at most {gpus}, or more nvidia.com/gpu in resources"
            )
        try:
            plan_inference(self.config, tensor=self.tensor)
        except ValueError as error:
            raise Refused(f"parallelism.{error}") from None


def plan_group(group: InferenceGroup) -> Plan:
    """Check a group against this engine and its model. Raises Refused."""
    spec = group.spec
    options = spec.engine.options or EngineOptions()
    target = spec.batching.target_inter_token_latency
    model = read_model(group)
    _check_quantization(model.folder, spec.quantization.weights)
    try:
        shared = plan_inference(model.config, pipeline=spec.parallelism.pipeline)
    except ValueError as error:
        raise Refused(str(error)) from None
    config = _stretched(model.config, spec.attention.rope_scaling)
    tensor, whole_experts = spec.parallelism.tensor, bool(options.enable_expert_parallel)
    if whole_experts and config.num_local_experts < tensor:
        raise Refused(
            f"parallelism.tensor is {tensor}, and of {config.num_local_experts} experts not every rank has one; write "
            f"a tensor of at most {config.num_local_experts}, or leave engine.options.enable_expert_parallel out"
        )
    length, window = _reach(spec.attention, config)
    return Plan(
        folder=model.folder,
        adapters={each.name: Path(group.locate(path_of(each.uri))) for each in spec.model.adapters or ()},
        config=config,
        slices=shared.slices,
        tensor=tensor,
        whole_experts=whole_experts,
        weights=spec.quantization.weights,
        kv_cache=spec.quantization.kv_cache,
        max_length=length,
        window=window,
        max_sequences=spec.batching.max_sequences,
        token_budget=spec.batching.token_budget,
        target_between_tokens=None if target is None else parse_duration(target),
        prefix_caching=spec.batching.prefix_caching,
        suffix_decoding=bool(spec.batching.suffix_decoding),
        memory_fraction=spec.batching.kv_cache.memory_fraction,
        pipeline_format=options.pipeline_format or "fp32",
        rounds_large_steps=options.large_step_format == "fp8",
        rounds_rows=options.row_format == "bf16",
    )


def _check_alone(option: str, other: str | None) -> None:
    if other:
        raise Refused(f"engine.options.{option} and {other}, which do not go together: leave one of them out")


def _check_quantization(folder: Path, weights: str) -> None:
    """Weights that are in FP8 are served as they are, or not at all: nothing is rounded a second time."""
    try:
        stored = read_quantization(folder)
    except ValueError as error:
        raise Refused(str(error)) from None
    if stored is None:
        return
    if stored.scale_block is not None and any(size % LANES for size in stored.scale_block):
        raise Refused(
            f"{folder}: its weights are {stored.describe()}, and the native engine takes blocks whose sides are "
            f"multiples of {LANES}; quantise it anew, `arctic quantize FOLDER NEW_FOLDER`"
        )
    if weights != "fp8":
        raise Refused(f"{folder}: its weights are in FP8 and quantization.weights is {weights}; write weights: fp8")


def _stretched(config: ArcticConfig, scaling: RopeScaling | None) -> ArcticConfig:
    """Put a manifest's scaling of positions into the configuration; one of the model's own can't be told from it."""
    if scaling is None:
        return config
    if config.rope is not None:
        raise Refused("the model's config.json has a rope_scaling of its own; leave attention.ropeScaling out")
    return config.replace(rope_scaling={"type": scaling.type, "factor": scaling.factor})


def _reach(attention: Attention, config: ArcticConfig) -> tuple[int, Window | None]:
    """Return how long a request may be, and the window if a request can outgrow it.

    The manifest's window stands for the model's own.
    """
    size = attention.window or config.sliding_window
    window = None if size is None else Window(size, attention.sinks)
    factor = attention.rope_scaling.factor if attention.rope_scaling else 1.0
    length = max_length(
        attention, int(config.max_position_embeddings * factor), None if window is None else window.reach
    )
    if config.rope is not None and config.rope.type == "dynamic" and length > config.max_position_embeddings:
        raise Refused(
            "the model's rope_scaling is dynamic: beyond its positions an answer would depend on the longest sequence "
            f"of a step; write attention.maxLength: {config.max_position_embeddings} or less"
        )
    return length, window if window is not None and window.reach < length else None
