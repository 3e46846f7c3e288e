"""What a group of the native engine is started with."""

from collections.abc import Callable
from pathlib import Path

from arctic_api.world import InferenceGroup
from arctic_model.config import ArcticConfig
from arctic_model.parallel import LayerSlice
from arctic_workers.inference.engines.native.plan import Plan, plan_group


def test_a_manifest_says_all_that_ranks_are_started_with(
    make_group: Callable[..., list[InferenceGroup]], model_folder: Path
) -> None:
    groups = make_group(
        2,
        quantization={"weights": "bf16", "kvCache": "fp32"},
        attention={"maxLength": 200},
        batching={"tokenBudget": 32, "maxSequences": 3, "kvCache": {"memoryFraction": 0.5}},
    )
    first, second = map(plan_group, groups)
    assert first == second
    assert first == Plan(
        folder=model_folder,
        config=ArcticConfig.from_folder(model_folder),
        slices=(
            LayerSlice(layers=range(2), embed=True, lm_head=False),
            LayerSlice(layers=range(2, 4), embed=False, lm_head=True),
        ),
        weights="bf16",
        kv_cache="fp32",
        max_length=200,
        window=None,
        max_sequences=3,
        token_budget=32,
        memory_fraction=0.5,
    )
    assert first.most_blocks == 3 * 13
    # 16 tokens of keys and values of 2 layers, 2 heads of 16 numbers of 4 bytes.
    assert [first.block_bytes(rank) for rank in range(2)] == [16 * 2 * 2 * 2 * 16 * 4] * 2
