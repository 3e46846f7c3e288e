"""What a manifest asks of a world, as plans take it. No torch: `arctic plan` asks for it too."""

from arctic_api.common import parse_tokens
from arctic_api.rules import FP8_MULTIPLE, stage_step
from arctic_api.training import ArcticTrainingSpec
from arctic_model.config import ArcticConfig
from arctic_model.planning.training import Stage, Training


def training_of(spec: ArcticTrainingSpec, config: ArcticConfig, *, on_cpu: bool) -> Training:
    """Return what a manifest asks of a world; CPUs train in fp32, GPUs in bf16, and at `precision: fp8` beside that.

    Raises ValueError with a sentence where a precision can't be.
    """
    if spec.precision == "fp8":
        check_fp8_sizes(config)
    stages = (
        Stage(stage.name, parse_tokens(stage.tokens), stage_step(spec, stage), stage.sequence_length)
        for stage in spec.curriculum.stages
    )
    return Training(
        config=config,
        stages=tuple(stages),
        nodes=spec.parallelism.nodes,
        processes_per_node=spec.parallelism.processes_per_node,
        expert_parallel=spec.parallelism.expert_parallel,
        sequence_parallel=spec.parallelism.sequence_parallel,
        zero_stage=spec.parallelism.zero_stage,
        micro_batch_size=spec.batch.micro_batch_size,
        compute="fp32" if on_cpu else "bf16",
        frozen=spec.model.adapter is not None,
        fp8=spec.precision == "fp8",
    )


def check_fp8_sizes(config: ArcticConfig) -> None:
    """Raise ValueError with a sentence for a model whose matrices have other sizes than FP8 takes."""
    sizes = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_key_value_heads x head_dim": config.num_key_value_heads * config.head_dim,
    }
    if uneven := [f"{what} is {size}" for what, size in sizes.items() if size % FP8_MULTIPLE]:
        raise ValueError(
            f"precision is fp8, which multiplies matrices whose sides are multiples of {FP8_MULTIPLE}, and of this "
            f"model {', '.join(uneven)}; write bf16"
        )
