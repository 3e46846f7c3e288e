"""Prompts and large batches: a layer of ours against what torch's grouped GEMM in FP8 takes for its products alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from arctic_model import fp8
from arctic_model.config import ArcticConfig
from arctic_model.fp8 import Fp8Experts
from arctic_model.moe import MoE
from arctic_workers.inference.engines.native.step import Part
from benchmarks.on_gpu.layers import Loaded, choices, prompts, rows_by_expert, singles, states
from benchmarks.on_gpu.measuring import seconds

STEPS = {
    "256 sequences": singles(256, 2048),
    "1K of a prompt": prompts(1, 1024),
    "4K of prompts": prompts(2, 2048),
    "16K of prompts": prompts(8, 2048),
}
"""By name: a large batch of 2,048 tokens of context, and prompts of up to as many."""
MOST = 256
"""Sequences of such a step."""


@dataclass(frozen=True)
class Read:
    """A step, a layer of it."""

    rows: int
    seconds: float
    products: float
    """Seconds of torch's products of the same shapes."""

    @property
    def of_gemm(self) -> float:
        """Our rate over that of torch's products."""
        return self.products / self.seconds


def read(loaded: Loaded, parts: list[Part], budget: float = 2.0) -> Read:
    """Measure a step of ours, and torch's products for the same rows of the same experts."""
    x_TD = states(parts, loaded.config, loaded.device)
    with choices() as tables:
        loaded.run(parts, x_TD)
    taken = seconds(lambda: loaded.run(parts, x_TD), loaded.device, budget) / loaded.config.num_hidden_layers
    counts_E = rows_by_expert(tables[0], loaded.config.num_local_experts)
    layer = loaded.model.layers[0].block_sparse_moe
    experts = cast("Fp8Experts", cast("MoE", layer).experts)
    calls = list(products(loaded.config, experts, len(x_TD), counts_E))

    def all_of_them() -> None:
        for call in calls:
            call()

    return Read(len(x_TD), taken, seconds(all_of_them, loaded.device, budget))


def products(config: ArcticConfig, experts: Fp8Experts, rows: int, counts_E: Tensor) -> Iterator[Callable[[], Tensor]]:
    """Yield a layer's products: of so many rows with what is dense, and of each expert's rows with the expert."""
    hidden, grouped = config.hidden_size, config.num_key_value_heads * config.head_dim
    dense = [(hidden + 2 * grouped, hidden), (hidden, hidden), *[(hidden, hidden)] * 3]
    for outputs, inputs in dense:
        weights = torch.zeros(1, outputs, inputs, dtype=torch.uint8, device=counts_E.device).random_(64)
        yield grouped_product(weights.view(fp8.DTYPE), counts_E.new_full((1,), rows), rows)
    for stack in (experts.w1, experts.w3, experts.w2):
        yield grouped_product(stack.detach(), counts_E, rows * config.num_experts_per_tok)


def grouped_product(weights_ENK: Tensor, counts_E: Tensor, rows: int) -> Callable[[], Tensor]:
    """Return the call that multiplies random rows in FP8, which matrices have so many of; all scales are 1."""
    experts, outputs, inputs = weights_ENK.shape
    x_RK, scale_R = fp8.quantize(torch.randn(rows, inputs, device=weights_ENK.device))
    scale_EN = torch.ones(experts, outputs, device=weights_ENK.device)
    ends_E = counts_E.cumsum(0).to(torch.int32)
    weights_EKN = weights_ENK.transpose(1, 2)
    return lambda: torch._scaled_grouped_mm(
        x_RK, weights_EKN, scale_R, scale_EN, offs=ends_E, out_dtype=torch.bfloat16, use_fast_accum=True
    )
