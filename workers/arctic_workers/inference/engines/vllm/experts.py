"""Experts where vLLM has no kernel that computes them: on CPUs, some. On GPUs vLLM's own are always used.

vLLM's grouped kernel for CPUs wants a hidden size that 32 divides, and takes the experts' global indices for places in
the weights, which they are not where experts are shared out among ranks (vLLM 0.32 and 0.33).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.fused_moe import FusedMoEConfig, FusedMoEMethodBase, RoutedExperts, SharedExperts
from vllm.model_executor.layers.fused_moe.config import FUSED_MOE_UNQUANTIZED_CONFIG, FusedMoEQuantConfig
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.utils import set_weight_attrs
from vllm.platforms import current_platform

KERNEL_ALIGNMENT = 32
"""What divides the hidden size that vLLM's grouped kernel for CPUs takes."""


def routed_experts_class(hidden: int, quant_config: QuantizationConfig | None) -> type[RoutedExperts] | None:
    """The class that holds a layer's experts on this device; None for vLLM's own.

    Raises NotImplementedError for quantised experts that are shared out among ranks: no kernel gets these right.
    """
    if not current_platform.is_cpu():
        return None
    shared_out = get_current_vllm_config().parallel_config.enable_expert_parallel
    if quant_config is None:
        return TorchExperts if shared_out or hidden % KERNEL_ALIGNMENT else None
    if shared_out:
        raise NotImplementedError(
            "vLLM's quantised experts cannot be shared out among ranks on CPUs: serve without expert parallelism"
        )
    return None


class TorchExperts(RoutedExperts):  # type: ignore[misc]  # vLLM is not typed where this is checked
    """vLLM's experts, computed in plain torch. Unquantised ones only: vLLM goes by the class's name for others."""

    def _get_quant_method(
        self,
        prefix: str,  # noqa: ARG002
        quant_config: QuantizationConfig | None,  # noqa: ARG002
        moe_config: FusedMoEConfig,
    ) -> FusedMoEMethodBase:
        return TorchMoEMethod(moe_config)


@torch.library.custom_op("arctic::expert_sums", mutates_args=())
def expert_sums(x_SD: Tensor, w13_EGD: Tensor, w2_EDF: Tensor, weights_SK: Tensor, held_SK: Tensor) -> Tensor:
    """Return [S, D]: for each row the weighted sum of the experts that it chose, by their place here; -1 is elsewhere.

    One operation to whoever traces the model: which rows an expert has depends on values. `G` is twice `F`.
    """
    y_SD = torch.zeros_like(x_SD)
    for expert in sorted({*held_SK.flatten().tolist()} - {-1}):
        rows_R, choices_R = (held_SK == expert).nonzero(as_tuple=True)
        gate_RF, up_RF = functional.linear(x_SD[rows_R], w13_EGD[expert]).chunk(2, dim=-1)
        out_RD = functional.linear(functional.silu(gate_RF) * up_RF, w2_EDF[expert])
        y_SD.index_add_(0, rows_R, out_RD * weights_SK[rows_R, choices_R, None].to(x_SD.dtype))
    return y_SD


@expert_sums.register_fake
def _(x_SD: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(x_SD)


class TorchMoEMethod(FusedMoEMethodBase):  # type: ignore[misc]
    """Experts one after another, each with the rows that chose it."""

    def create_weights(
        self,
        layer: nn.Module,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **attributes: object,
    ) -> None:
        """Give the layer its stacked weights by vLLM's names, and them the loader of vLLM's that fills them."""
        shapes = {
            "w13_weight": (num_experts, 2 * intermediate_size_per_partition, hidden_size),
            "w2_weight": (num_experts, hidden_size, intermediate_size_per_partition),
        }
        for name, shape in shapes.items():
            weight = nn.Parameter(torch.empty(shape, dtype=params_dtype), requires_grad=False)
            layer.register_parameter(name, weight)
            set_weight_attrs(weight, attributes)

    def get_fused_moe_quant_config(self, layer: RoutedExperts) -> FusedMoEQuantConfig:  # noqa: ARG002
        """Nothing is quantised."""
        return FUSED_MOE_UNQUANTIZED_CONFIG

    def apply(
        self,
        layer: RoutedExperts,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: SharedExperts | None,  # noqa: ARG002  vLLM has run it
        shared_experts_input: Tensor | None,  # noqa: ARG002
    ) -> Tensor:
        """Return [S, D], the weighted sums of this rank's experts of `x` [S, D]; what was chosen is [S, K]."""
        held_SK = topk_ids if layer.expert_map is None else layer.expert_map[topk_ids]
        y_SD: Tensor = expert_sums(x, layer.w13_weight, layer.w2_weight, topk_weights, held_SK)
        return y_SD
